"""The tutorials, each a folder to copy (``flowkit tutorials pull``); installed as ``flowkit.tutorials``.

Their folders are data, not modules: nothing in here is imported by flowkit.
"""

if __name__ != "flowkit.tutorials":
    raise ImportError(
        f"this folder is the package flowkit.tutorials and was imported as '{__name__}': install flowkit "
        "(pip install -e . in a checkout), and copy a tutorial with flowkit tutorials pull"
    )
