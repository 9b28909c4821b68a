"""Third-party systems: cloud storages, executors and deployers (imported as ``flowkit.plugins``)."""

if __name__ != "flowkit.plugins":
    raise ImportError(
        f"this folder is the package flowkit.plugins and was imported as '{__name__}': install flowkit "
        "(pip install -e . in a checkout), and write flowkit.plugins"
    )
