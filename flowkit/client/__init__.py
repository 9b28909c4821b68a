"""The client: what runs have made, read from the index and the datastore."""

from flowkit.client.namespace import (
    default_metadata,
    default_namespace,
    get_metadata,
    get_namespace,
    metadata,
    namespace,
)
from flowkit.client.objects import DataArtifact, Flow, FlowData, Flowkit, Run, Step, Task

__all__ = [
    "DataArtifact",
    "Flow",
    "FlowData",
    "Flowkit",
    "Run",
    "Step",
    "Task",
    "default_metadata",
    "default_namespace",
    "get_metadata",
    "get_namespace",
    "metadata",
    "namespace",
]
