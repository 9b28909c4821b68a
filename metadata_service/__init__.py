"""The metadata service (imported as ``flowkit.metadata_service``).

A server of its own for teams: the records of every run behind a REST interface, on PostgreSQL, and later the web
interface. One laptop needs none of it: runs are seen through the datastore and its local index.
"""

if __name__ != "flowkit.metadata_service":
    raise ImportError(
        f"this folder is the package flowkit.metadata_service and was imported as '{__name__}': install flowkit "
        "(pip install -e . in a checkout), and write flowkit.metadata_service"
    )
