"""How a notebook shows a run: its state, its steps, and what its last step left. Nothing is loaded, all is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from flowkit.metadata.records import RunRecord, StepRecord
from flowkit.model.manifest import Artifact

_COLOURS = {
    "succeeded": "#1a7f37",
    "failed": "#cf222e",
    "lost": "#cf222e",
    "running": "#0969da",
    "cancelled": "#9a6700",
}
_MOST = 50
"""Rows of a table."""
_LONGEST = 200
"""Characters of a preview."""


def run_page(pathspec: str, record: RunRecord, steps: Sequence[StepRecord], artifacts: Mapping[str, Artifact]) -> str:
    """Return a run as HTML.

    Parameters
    ----------
    pathspec : str
        Of the run.
    record : RunRecord
        How it stands.
    steps : sequence of StepRecord
        Its steps, in the order in which they began.
    artifacts : mapping of str to Artifact
        What its last step left, by name.
    """
    from datetime import datetime

    began = datetime.fromtimestamp(record.created).strftime("%Y-%m-%d %H:%M:%S")
    took = f", {_seconds(record.finished - record.created)}" if record.finished is not None else ""
    parts = [
        f"<b>{escape(pathspec)}</b> {_state(record.state)}",
        f"<div>{escape(record.user)}, {began}{took}</div>",
    ]
    if record.reason:
        parts.append(f"<div>{escape(record.reason)}</div>")
    if record.tags:
        parts.append(f"<div>tags: {escape(', '.join(record.tags))}</div>")
    shown = [step for step in steps if not step.step.startswith("_")]
    parts.append(_table(("step", "tasks", "state", "time"), [_step(step) for step in shown[:_MOST]]))
    if artifacts:
        rows = [_artifact(name, artifacts[name]) for name in sorted(artifacts)[:_MOST]]
        parts.append(_table(("artifact", "type", "value", "bytes"), rows))
    return "<div>" + "\n".join(parts) + "</div>"


def _step(step: StepRecord) -> tuple[str, ...]:
    states = " ".join(f"{count:,} {_state(state)}" for state, count in step.counts.items())
    took = _seconds(step.finished - step.created) if step.finished is not None else ""
    return escape(step.step), f"{sum(step.counts.values()):,}", states, took


def _artifact(name: str, artifact: Artifact) -> tuple[str, ...]:
    preview = artifact.preview
    told = [f"{fact} {preview[fact]}" for fact in ("shape", "dtype", "columns", "length") if fact in preview]
    value = str(preview["repr"]) if "repr" in preview else ", ".join(told)
    return escape(name), escape(artifact.type), f"<code>{escape(value[:_LONGEST])}</code>", f"{artifact.size:,}"


def _state(state: str) -> str:
    return f'<span style="color:{_COLOURS.get(state, "inherit")}">{escape(state)}</span>'


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "<table>" + _row(head, "th") + "".join(_row(each, "td") for each in rows) + "</table>"


def _row(cells: tuple[str, ...], kind: str) -> str:
    return "<tr>" + "".join(f'<{kind} style="text-align:left">{cell}</{kind}>' for cell in cells) + "</tr>"
