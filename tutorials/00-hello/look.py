"""Look at the latest run of HelloFlow: python look.py, after python flow.py run."""

from flowkit import Flow

run = Flow("HelloFlow").latest_successful_run
print(f"{run.pathspec} took {(run.finished_at - run.created_at).total_seconds():.1f} s")

# A run has steps, a step has tasks, and a task has artifacts and what it printed.
for step in run:
    for task in step:
        print(f"{task.pathspec} printed {task.stdout!r}")

# What the run left behind: the artifacts of its last step.
print("the message:", run.data.message)
