"""Flows whose steps run on AWS Batch: moto's Batch and S3 over HTTP, its jobs executed as processes."""

from __future__ import annotations

FAN = """
    from flowkit import FlowSpec, step


    class Fan(FlowSpec):
        @step
        def start(self):
            self.items = list(range(5))
            self.next(self.each, foreach="items")

        @step
        def each(self):
            print("item", self.input)
            self.square = self.input**2
            self.next(self.join)

        @step
        def join(self, inputs):
            self.squares = [task.square for task in inputs]
            self.next(self.end)

        @step
        def end(self):
            print("squares", self.squares)


    if __name__ == "__main__":
        Fan()
"""


def test_a_foreach_of_five_is_one_array(cloud, service) -> None:
    cloud.write("flow.py", FAN)
    done = cloud.run("run", "--with", "batch:image=python", check=True)
    assert "squares [0, 1, 4, 9, 16]" in done.stdout
    assert service.calls["SubmitJob"] == 4
