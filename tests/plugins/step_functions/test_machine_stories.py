"""Flows on AWS Step Functions from the command to the end of the run."""

from __future__ import annotations

from machine_service import run_through_step_functions, story, execution_of

FLOW = """
    from flowkit import FlowSpec, Parameter, step

    class TinyFlow(FlowSpec):
        alpha = Parameter("alpha", default=3)
        @step
        def start(self):
            self.items = [1, 2]
            self.next(self.each, foreach="items")
        @step
        def each(self):
            self.x = self.input * self.alpha
            self.next(self.join)
        @step
        def join(self, inputs):
            self.total = sum(one.x for one in inputs)
            self.next(self.end)
        @step
        def end(self):
            pass

    if __name__ == "__main__":
        TinyFlow()
"""


def test_tiny(machines, cloud) -> None:
    cloud.write("flow.py", FLOW)
    run, state = run_through_step_functions(machines, cloud, parameters={"alpha": 5})
    if state != "succeeded":
        print(story(machines, execution_of(machines, run)["executionArn"]))
    assert state == "succeeded"
