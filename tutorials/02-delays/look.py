"""Look at the latest run of DelaysFlow: python look.py, after python flow.py run."""

from flowkit import Flow

run = Flow("DelaysFlow").latest_successful_run
result = run.data.result

print("minutes late when leaving     flights   mean = beside +  own  (certain)       late in")
for row in result.itertuples():
    certain = f"({row.low:+.1f} to {row.high:+.1f})"
    print(
        f"{row.name:<28} {row.flights:8,} {row.delay:6.1f} {row.neighbours:8.1f} {row.own:+6.1f}  {certain:<16}"
        f"{row.months_late:3} of 12 months: {row.verdict}"
    )
print()
print(run.data.answer)
print()

# The tasks of a foreach are found by their index, or by what they kept; each has what it printed, too.
worst = next(task for task in run["compare"] if task.data.row["name"] == result.name[0])
print(f"{worst.pathspec}, item {worst.index} of the foreach, printed: {worst.stdout.strip()}")
