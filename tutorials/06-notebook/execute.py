"""Run the notebook without a browser, and print what its cells print."""

import nbformat
from nbclient import NotebookClient

notebook = nbformat.read("notebook.ipynb", as_version=4)
NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
for cell in notebook.cells:
    for output in cell.get("outputs", ()):
        print(output["text"] if "text" in output else output["data"]["text/plain"])
nbformat.write(notebook, "executed.ipynb")
