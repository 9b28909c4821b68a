"""Writes one line for each night: a second flow, which the end of the first one starts."""

from flowkit import FlowSpec, current, step, trigger_on_finish


@trigger_on_finish(flow="NightlyFlow")
class ReportFlow(FlowSpec):
    """Tell what the run found that started this one."""

    @step
    def start(self):
        """Read the other run's artifacts."""
        night = current.trigger.run
        self.line = f"{night.pathspec}, day {night.data.day}: {night.data.best}, {max(night.data.scores.values()):.0%}"
        self.next(self.end)

    @step
    def end(self):
        """Say it."""
        print(self.line)


if __name__ == "__main__":
    ReportFlow()
