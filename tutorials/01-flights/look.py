"""Look at the latest run of FlightsFlow: python look.py, after python flow.py run."""

from flowkit import Flow

run = Flow("FlightsFlow").latest_successful_run

# Artifacts come back as what they were: parameters as numbers and text, frames as frames.  Nothing is loaded before it
# is asked for: this reads the small table, not the flights.
by_hour = run.data.by_hour
print(f"Run {run.id}: flights from {run.data.origin}, at most {run.data.late} minutes late")
print("hour   flights  on time")
for hour, row in by_hour.iterrows():
    print(f"{hour:>4} {row.flights:9,.0f} {row.on_time:8.1%}  {'#' * round(50 * row.on_time)}")
print(run.data.answer)

# Every run is kept.  What did the others say?
for other in Flow("FlightsFlow"):
    if other.successful and other != run:
        print(f"Run {other.id} ({other.data.origin}, {other.data.late} minutes): {other.data.answer}")
