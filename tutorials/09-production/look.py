"""Look at the runs: what was started by what, and what came of it."""

from flowkit import Flow, namespace

namespace(None)  # deployed runs are in a namespace of their own
for run in Flow("NightlyFlow"):
    by = ", ".join(event.name for event in run.trigger.events) if run.trigger else "hand"
    where = f"deployed as {run.deployment}" if run.deployment else "on the laptop"
    print(f"{run.id}: {run.status}, {where}, started by {by}")
    if run.successful:
        print(f"    day {run.data.day}: {run.data.best}, {run.data.scores[run.data.best]:.0%}")
    for task in run.failed_tasks:
        print(f"    {task.pathspec} failed: {task.exception.type}: {task.exception.exception}")

print("\nwhat the reports say:")
for run in Flow("ReportFlow"):
    print(f"    {run.data.line}")
