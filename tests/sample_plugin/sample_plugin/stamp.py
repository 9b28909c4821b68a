"""A decorator: ``@stamp(text="…")`` leaves a word in an artifact; ``--with stamp`` puts it on every step."""

from flowkit.decorators.attach import step_decorator
from flowkit.decorators.contract import StepDecorator
from flowkit.exceptions import Problem


class Stamp(StepDecorator):
    name = "stamp"
    defaults = {"text": "stamped"}

    def configure(self, flow, node):
        if not self.attributes["text"]:
            return [Problem(f"@stamp of step '{node.name}' has an empty text", self.location, "write a word")]
        return []

    def around(self, task, proceed):
        task.flow.stamps = [*getattr(task.flow, "stamps", []), f"{self.attributes['text']} {task.step}"]
        proceed()


stamp = step_decorator(Stamp)
