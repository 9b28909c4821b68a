"""Flows on AWS Step Functions from the command to the end of the run."""

from __future__ import annotations

from machine_service import execution_of, run_through_step_functions, story

RICH = """
    from flowkit import FlowSpec, Parameter, catch, exit_hook, parallel, retry, step, current

    def told(run):
        print("hook", run.pathspec)

    @exit_hook(on_success=[told])
    class RichFlow(FlowSpec):
        alpha = Parameter("alpha", default=3)
        word = Parameter("word", default=None)

        @step
        def start(self):
            self.next(self.left, self.right)

        @step
        def left(self):
            self.widths = [2, 0]
            self.next(self.outer, foreach="widths")

        @step
        def outer(self):
            self.items = [self.alpha * 10 + index for index in range(self.input)]
            self.next(self.inner, foreach="items")

        @step
        def inner(self):
            self.way = "odd" if self.input % 2 else "even"
            self.next({"odd": self.odd, "even": self.even}, condition="way")

        @step
        def odd(self):
            self.seen = f"odd {self.input}"
            self.next(self.inner_join)

        @step
        def even(self):
            self.seen = f"even {self.input}"
            self.next(self.inner_join)

        @step
        def inner_join(self, inputs):
            self.seen = [one.seen for one in inputs]
            self.next(self.outer_join)

        @step
        def outer_join(self, inputs):
            self.seen = [one.seen for one in inputs]
            self.next(self.join)

        @retry(times=1, minutes_between_retries=0)
        @step
        def right(self):
            if current.retry_count == 0:
                raise ValueError("the first attempt")
            self.turns = 0
            self.next(self.loop)

        @step
        def loop(self):
            self.turns += 1
            self.go = "again" if self.turns < 2 else "done"
            self.next({"again": self.loop, "done": self.after}, condition="go")

        @catch(var="caught")
        @step
        def after(self):
            if self.turns:
                raise KeyError("nothing")
            self.next(self.join)

        @step
        def join(self, inputs):
            self.seen, self.turns, self.text = inputs.outer_join.seen, inputs.after.turns, self.word
            self.caught = type(inputs.after.caught).__name__
            self.next(self.crowd)

        @step
        def crowd(self):
            self.next(self.gang, num_parallel=2)

        @parallel
        @step
        def gang(self):
            self.node = current.parallel.node_index
            self.next(self.gang_join)

        @step
        def gang_join(self, inputs):
            self.merge_artifacts(inputs, include=["seen", "turns", "text"])
            self.nodes = [one.node for one in inputs]
            self.next(self.end)

        @step
        def end(self):
            print("the end")

    if __name__ == "__main__":
        RichFlow()
"""


def test_rich(machines, cloud) -> None:
    cloud.write("flow.py", RICH)
    run, state = run_through_step_functions(machines, cloud, parameters={"alpha": 5, "word": "hello"})
    if state != "succeeded":
        print(story(machines, execution_of(machines, run)["executionArn"]))
        for job in machines.jobs():
            print(job.job_name, job.status)
        print(cloud.run("logs", run.partition("/")[2]).output[-3000:])
    print(cloud.run("status", run.partition("/")[2]).output)
    assert state == "succeeded"
