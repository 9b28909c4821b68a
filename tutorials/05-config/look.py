"""Compare the runs of ForecastFlow by their configs: python look.py, after run."""

from flowkit import Flow

runs = [run for run in Flow("ForecastFlow") if run.successful]
print("run  hours  columns  ridge   °F off  as today  tries")
for run in reversed(runs):
    data = run.data
    config = data.forecast  # as the file said it, kept with the run
    error, as_today = (sum(found.values()) / len(found) for found in (data.errors, data.like_today))
    tries = sum(task.current_attempt + 1 for step in run for task in step)
    print(
        f"{run.id:>3}  {config['hours_back']:>5}  {len(config['columns']):>7}  {config.get('ridge', 1.0):>6g}"
        f"  {error:>6.2f}  {as_today:>8.2f}  {tries:>5}"
    )

best = min(runs, key=lambda run: sum(run.data.errors.values()) / sum(run.data.like_today.values()))
print(f"\n{best.data.answer}")
