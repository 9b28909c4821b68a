"""Look at how the latest run of FreezeFlow came about: python look.py, after run, mend and resume."""

from flowkit import Flow

flow = Flow("FreezeFlow")

for run in flow:  # newest first
    print(f"{run.pathspec}: {'succeeded' if run.successful else 'failed'}")
    for task in run.failed_tasks:
        print(f"    {task.pathspec} failed: {task.exception.type}: {task.exception.exception}")

# A cloned task says where its work was done; one that ran in the run itself has no origin.
run = flow.latest_run
print(f"\nwhere the work of {run.pathspec} was done:")
for step in reversed(list(run)):
    for task in step:
        print(
            f"    {task.pathspec:<22} {'taken from ' + task.origin_pathspec if task.origin_pathspec else 'done here'}"
        )

if run.successful:
    print()
    print(run.data.answer)
    print("hours of frost:", run.data.frost, " hours without a reading:", run.data.unknown)
