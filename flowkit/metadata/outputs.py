"""What a manifest says of a task's artifacts, for stores that index them."""

from __future__ import annotations

from flowkit.metadata.records import ArtifactRecord, OutputRecord
from flowkit.model.manifest import Manifest


def output_of(
    manifest: Manifest, *, run: str | None = None, task: str | None = None, attempt: int | None = None
) -> OutputRecord:
    """Return what a task made and read.

    Parameters
    ----------
    manifest : Manifest
        What it committed.
    run, task, attempt : optional
        Whose output it is, where that is not the manifest's own: a clone has what its origin made.
    """
    artifacts = tuple(
        ArtifactRecord(name, each.key, each.size, each.type, each.codec) for name, each in manifest.artifacts.items()
    )
    return OutputRecord(
        manifest.flow,
        run or manifest.run,
        manifest.step,
        task or manifest.task,
        manifest.attempt if attempt is None else attempt,
        artifacts,
        _reads(manifest),
    )


def _reads(manifest: Manifest) -> tuple[str, ...]:
    """Return ``name=key`` of every artifact that was read; one that was found absent has no key."""
    own = manifest.reads.get("artifacts", ())
    inputs = (read.partition(":")[2] for read in manifest.reads.get("inputs", ()))
    return tuple(dict.fromkeys(read for read in (*own, *inputs) if read.partition("=")[2]))
