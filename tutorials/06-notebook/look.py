"""Look at the notebook's runs from outside of it."""

from flowkit import Flow

for run in Flow("NotebookFlow"):
    print(run.id, run.status, run.data.scores if run.successful else run.status_reason.partition(" must ")[0])
