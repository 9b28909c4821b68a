"""Values of parameters on their way from who starts a run, as JSON through a scheduler, to the run."""

from __future__ import annotations

import json

import pytest
from deployments import definition_of, deployment_of
from hypothesis import given
from hypothesis import strategies as any_of
from value_targets import Cluster

from flowkit.deployer.target import DeploymentRecord, ParameterPlan
from flowkit.deployer.targets import checked_parameters
from flowkit.deployer.values import deploy_values, json_text
from flowkit.exceptions import UsageError
from flowkit.runtime.template import parameter_value

FLOW = """
import enum

class Colour(enum.Enum):
    red = 1
    blue = 2

class Train(FlowSpec):
    text = Parameter("text")
    whole = Parameter("whole", type=int)
    part = Parameter("part", type=float)
    truth = Parameter("truth", type=bool)
    data = Parameter("data", type=JSONType)
    hue = Parameter("the-hue", type=Colour)
    size = Parameter("size", type=[1, "m", "null"])
    parts = Parameter("parts", separator=",")
    long = Parameter("long", default="x" * 5000)

    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.fixture(scope="module")
def definition():
    return definition_of(FLOW)


@pytest.fixture(scope="module")
def record(definition):
    plans = deploy_values(definition, user="ann").parameters
    return DeploymentRecord("t", "train", "Train", parameters=plans)


PLAIN = any_of.recursive(
    any_of.none() | any_of.booleans() | any_of.integers() | any_of.floats(allow_nan=False) | any_of.text(),
    lambda inner: any_of.lists(inner, max_size=3) | any_of.dictionaries(any_of.text(), inner, max_size=3),
    max_leaves=5,
)
VALUES = {
    "text": any_of.text(),
    "whole": any_of.integers(),
    "part": any_of.floats(allow_nan=False),
    "truth": any_of.booleans(),
    "data": PLAIN.filter(lambda value: value is not None),
    "size": any_of.sampled_from([1, "m", "null"]),
    "parts": any_of.lists(any_of.text()),
}


@given(any_of.fixed_dictionaries({}, optional=VALUES), any_of.sampled_from([None, "red", "blue"]))
def test_what_is_given_is_what_the_run_has(definition, record, values, hue):
    if hue is not None:
        values = {**values, "the_hue": definition.parameters["hue"].parse(hue)}
    texts = checked_parameters(record, values)
    for name, value in values.items():
        attribute = "hue" if name == "the_hue" else name
        parameter = definition.parameters[attribute]
        arrived = parameter_value(parameter, texts[attribute])
        if name == "data" and isinstance(value, str):
            # A text stands for JSON here as it does on the command line.
            assert arrived in (value, _loaded(value))
        else:
            assert arrived == value
            assert type(arrived) is type(value)
            # On the command line the flow's own types make the JSON.
            assert parameter_value(parameter, json_text(parameter, value)) == value


def _loaded(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def test_texts_stand_for_values_as_on_the_command_line(definition, record):
    given = {
        "text": "5",
        "whole": "7",
        "part": "1e3",
        "truth": "yes",
        "data": '{"a": 1}',
        "the-hue": "red",
        "parts": "a,b",
    }
    texts = checked_parameters(record, given)
    arrived = {name: parameter_value(definition.parameters[name], text) for name, text in texts.items()}
    assert arrived.pop("hue").name == "red"
    assert arrived == {
        **{"text": "5", "whole": 7, "part": 1000.0, "truth": True, "data": {"a": 1}, "parts": ["a", "b"]},
    }
    assert checked_parameters(record, {"whole": None, "text": None}) == {}


def test_all_that_is_wrong_is_told_at_once(record):
    needed = ParameterPlan("needed", "needed", "text", None, True)
    record = DeploymentRecord("t", "train", "Train", parameters=(*record.parameters, needed))
    wrong = {"whole": 1.5, "part": "fast", "truth": "perhaps", "the_hue": "green", "data": {1}, "txt": 1}
    with pytest.raises(UsageError) as told:
        checked_parameters(record, wrong)
    assert told.value.headline.splitlines() == [
        "the parameter 'whole': it takes a whole number, not 1.5",
        "the parameter 'part': it takes a number, not 'fast'",
        "the parameter 'truth': it takes true or false, not 'perhaps'",
        "the parameter 'the-hue': 'green' is none of red, blue",
        "the parameter 'data': Object of type set is not JSON serializable",
        "train has no parameter 'txt' (did you mean 'text'?)",
        "the parameter 'needed' is required",
    ]


def test_a_long_default_is_in_no_document():
    made = deployment_of(FLOW, Cluster)
    (long,) = (plan for plan in made.parameters if plan.name == "long")
    assert (long.default, long.required) == (None, False)
    assert len(json.dumps(made.record)) < 5000
