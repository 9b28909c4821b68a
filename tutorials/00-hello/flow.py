"""The smallest flow: one step leads to the next, and what is assigned to self is kept."""

from flowkit import FlowSpec, step


class HelloFlow(FlowSpec):
    """Say hello, and keep what was said."""

    @step
    def start(self):
        """A flow begins in the step named start."""
        # An attribute of self is an artifact: stored when the step ends, there in every later step.
        self.message = "Hello, world!"
        self.next(self.end)

    @step
    def end(self):
        """And it ends in the step named end, which leads nowhere."""
        print(self.message)


if __name__ == "__main__":
    HelloFlow()
