"""Configs: values that cannot be changed, delayed ones, files, types."""

from __future__ import annotations

import copy
import enum
import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from flowkit import conda_environment_yml_parser, pyproject_toml_parser, requirements_txt_parser
from flowkit.exceptions import UsageError
from flowkit.model.config_files import Source, choose, line_of, read
from flowkit.model.config_types import convert
from flowkit.model.configs import Config, ConfigValue, config_expr, settled, waits
from flowkit.model.parameters import ParameterContext

CONTEXT = ParameterContext("F", "me", "x", print, "local")
TREE = {"lr": 0.1, "retry": {"times": 2}, "layers": [{"size": 3}, [4]], "items": 1}


# -- values --------------------------------------------------------------------------------------------------------


def test_keys_are_attributes_and_items() -> None:
    value = ConfigValue(TREE)
    assert (value.lr, value["lr"], value.retry.times, value.layers[0].size) == (0.1, 0.1, 2, 3)
    assert value.get("none", 5) == 5
    assert "lr" in value
    assert list(value) == list(TREE)
    assert value["items"] == 1, "a key with the name of a method is an item"
    assert {**value.retry} == {"times": 2}
    assert value == TREE
    assert json.loads(json.dumps(value)) == TREE
    assert isinstance(value, dict)
    assert "retry" in dir(value)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: setattr(v, "lr", 1),
        lambda v: delattr(v, "lr"),
        lambda v: v.__setitem__("lr", 1),
        lambda v: v.__delitem__("lr"),
        lambda v: v.update(lr=1),
        lambda v: v.retry.pop("times"),
        lambda v: v.layers.append(1),
        lambda v: v.layers[0].clear(),
        lambda v: v.layers[1].__setitem__(0, 1),
        lambda v: v.layers.sort(),
        lambda v: v.setdefault("new", 1),
        lambda v: v.__ior__({"a": 1}),
    ],
)
def test_nothing_changes_a_value(change) -> None:
    value = ConfigValue(TREE)
    with pytest.raises(TypeError, match="cannot be changed"):
        change(value)
    assert value == TREE


def test_a_copy_as_a_dict_may_be_changed() -> None:
    value = ConfigValue(TREE)
    plain = value.to_dict()
    plain["layers"][0]["size"] = 9
    plain["layers"].append(1)
    assert type(plain["retry"]) is dict
    assert type(plain["layers"]) is list
    assert value.layers[0].size == 3
    assert len(value.layers) == 2


def test_values_are_pickled_and_copied() -> None:
    value = ConfigValue(TREE)
    for again in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value), copy.copy(value)):
        assert again == value
        assert type(again) is ConfigValue
        assert type(again.retry) is ConfigValue
        with pytest.raises(TypeError):
            again.layers.append(1)
    assert pickle.loads(pickle.dumps(value.layers)) == value.layers


def test_a_key_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match=r"the config has no key 'retri' \(did you mean 'retry'\?\)"):
        ConfigValue(TREE).retri  # noqa: B018
    with pytest.raises(KeyError):
        ConfigValue(TREE)["retri"]
    assert not hasattr(ConfigValue(TREE), "_private")


# -- delayed values ------------------------------------------------------------------------------------------------


class Flow:
    """What a flow's class body says; only the names matter here."""

    cfg = Config("cfg")
    other = Config("other-name")
    ROWS = 7
    computed = config_expr("[cfg.lr * n for n in range(ROWS)]")


VALUES = {"cfg": ConfigValue(TREE), "other": None}


def test_delayed_values_are_computed_when_the_values_are_known() -> None:
    waiting = {
        "lr": Flow.cfg.lr,
        "times": Flow.cfg["retry"]["times"],
        "size": [Flow.cfg.layers[0].size, (Flow.cfg.layers[1][0], 1)],
        "all": Flow.cfg,
        "plain": 5,
    }
    assert waits(waiting)
    assert not waits({"plain": [5]})
    assert settled(waiting, VALUES) == {"lr": 0.1, "times": 2, "size": [3, (4, 1)], "all": TREE, "plain": 5}


def test_names_of_the_config_itself_are_its_keys_too() -> None:
    config = Config("c", help="…")
    config.__set_name__(None, "c")
    values = {"c": ConfigValue({"name": "n", "type": "t", "default": "d", "help": "h", "parser": "p"})}
    asked = [config.name, config.type, config.default, config.help, config.parser]
    assert settled(asked, values) == ["n", "t", "d", "h", "p"]


def test_unpacking_into_keywords() -> None:
    def take(**keywords: Any) -> dict[str, Any]:
        return keywords

    assert settled(take(a=1, **Flow.cfg.retry), VALUES) == {"a": 1, "times": 2}
    assert settled(take(**Flow.cfg), VALUES) == TREE
    assert settled(take(**Flow.other), VALUES) == {}, "a config without a value adds nothing"
    assert settled(take(**Flow.cfg.retry, **Flow.cfg.layers[0]), VALUES) == {"times": 2, "size": 3}


def test_expressions_see_configs_the_class_and_the_module() -> None:
    assert settled(Flow.computed, VALUES) == [0.1 * n for n in range(7)]
    assert settled(config_expr("len(TREE) + cfg.retry.times"), VALUES) == 6
    assert settled(config_expr("cfg").retry.times, VALUES) == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: Flow.cfg.retri, "cfg has no 'retri'"),
        (lambda: Flow.cfg.retry.tims, "cfg.retry has no 'tims'"),
        (lambda: Flow.cfg.layers[5], "cfg.layers has no 5"),
        (lambda: Flow.other.x, "other.x: the config 'other-name' has no value"),
        (lambda: config_expr("cfg.nix"), "config_expr('cfg.nix') cannot be computed: AttributeError"),
        (lambda: config_expr("1 / 0"), "ZeroDivisionError"),
        (lambda: Config("stray").x, "Config('stray') is not one of the flow's configs"),
    ],
)
def test_what_cannot_be_computed_names_the_line(value, message) -> None:
    with pytest.raises(UsageError) as caught:
        settled(value(), VALUES)
    assert message in caught.value.headline
    assert caught.value.where is not None
    assert caught.value.where.file == __file__


@pytest.mark.parametrize(
    "use",
    [lambda v: v + 1, bool, lambda v: f"{v}", str, int, lambda v: list(v), lambda v: 2 * v, lambda v: v > 1],
)
def test_computing_too_early_is_explained(use) -> None:
    with pytest.raises(UsageError, match=r"cfg\.lr is not known yet") as caught:
        use(Flow.cfg.lr)
    assert "config_expr" in (caught.value.hint or "")


def test_an_expression_that_is_none() -> None:
    with pytest.raises(UsageError, match="is no expression"):
        config_expr("a b")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Config("a b"), "cannot be a config's name"),
        (lambda: Config("a", default="x", default_value={}), "a default and a default_value"),
        (lambda: Config("a", parsr=1), "has no option 'parsr'"),
        (lambda: Config("a", plain=True, type=Train), "is plain and has a type"),
        (lambda: Config("a", type=int), "a dataclass or a pydantic model"),
        (lambda: Config("a", default=Flow.cfg.x), "another config cannot be its default"),
    ],
)
def test_configs_that_cannot_be(make, message) -> None:
    with pytest.raises(UsageError, match=message):
        make()


# -- files ---------------------------------------------------------------------------------------------------------

JSON = '{\n  "lr": 0.1,\n  "retry": {\n    "times": 2\n  },\n  "layers": [\n    {"size": 3}\n  ]\n}\n'
TOML = 'lr = 0.1\n\n[retry]\ntimes = 2\n\n[[layers]]\nsize = 3\n\n[a."b c"]\nd.e = 1\n'
YAML = "lr: 0.1\nretry:\n  times: 2\nlayers:\n- size: 3\n"


@pytest.mark.parametrize(("name", "text"), [("c.json", JSON), ("c.toml", TOML), ("c.yaml", YAML), ("c.yml", YAML)])
def test_formats_by_ending(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    values = read(Config("c"), Source("--config", str(tmp_path / name)))
    assert (values["lr"], values["retry"], values["layers"]) == (0.1, {"times": 2}, [{"size": 3}])


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("c.json", JSON, {("lr",): 2, ("retry", "times"): 4, ("layers", 0, "size"): 7, ("layers", 0, "new"): 7}),
        ("c.toml", TOML, {("lr",): 1, ("retry",): 3, ("retry", "times"): 4, ("layers", 0, "size"): 7}),
        ("c.toml", TOML, {("a", "b c", "d", "e"): 10, ("nothing",): None}),
        ("c.yaml", YAML, {("lr",): 1, ("retry", "times"): 3, ("layers", 0, "size"): 5}),
        ("c.ini", "[x]", {("x",): None}),
        ("c.json", "{broken", {("x",): None}),
    ],
)
def test_lines_of_keys(name: str, text: str, lines: dict[tuple[Any, ...], int | None]) -> None:
    assert {keys: line_of(text, name, keys) for keys in lines} == lines


@pytest.mark.parametrize(
    ("name", "text", "message", "line"),
    [
        ("c.json", '{\n"a": 1,\n"b"\n}', "is no JSON: Expecting ':' delimiter", 4),
        ("c.toml", "a = 1\nb = \n", "is no TOML", 2),
        ("c.yaml", "a: 1\nb: [1\n", "is no YAML", 3),
        ("c.yaml", "!!python/object/apply:os.getcwd []", "is no YAML: could not determine a constructor", 1),
        ("c.json", "[1, 2]", "holds a list, and a config is a table of keys", 1),
        ("c.ini", "a=1", "ends in '.ini', which is not a known format", None),
        ("c.json", "[" * 100_000, "nested too deeply", None),
    ],
)
def test_files_that_mean_nothing(tmp_path: Path, name: str, text: str, message: str, line: int | None) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        read(Config("c"), Source("--config", str(file)))
    assert message in caught.value.headline
    assert caught.value.headline.startswith("config 'c': ")
    assert (caught.value.where.line if caught.value.where else None) == line


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("{}")
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    for path, message, hint in (
        ("trian.json", "No such file", "did you mean 'train.json'?"),
        (".", "Is a directory", "the path is relative"),
        ("latin.json", "is no UTF-8 text", None),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            read(Config("c"), Source("--config", str(tmp_path / path)))
        assert (hint is None) or (caught.value.hint or "").startswith(hint)


def split_lines(text: str) -> dict[str, str]:
    """Parse ``key=value`` lines."""
    return dict(line.split("=") for line in text.split())


def test_parsers(tmp_path: Path) -> None:
    file = tmp_path / "c.env"
    file.write_text("a=1\nb=2\n")
    source = Source("--config", str(file))
    assert read(Config("c", parser=split_lines), source) == {"a": "1", "b": "2"}
    assert read(Config("c", parser="json.loads"), Source("--config-value", None, '{"a": 1}')) == {"a": 1}
    assert read(Config("c", parser="json.loads"), Source("x", None, {"a": 1})) == {"a": 1}, "values are no text"
    assert read(Config("c", parser=str.split, plain=True), source) == ["a=1", "b=2"]
    assert read(Config("c", parser=".plugins.yaml_files.yaml_parser"), Source("x", None, "a: 1")) == {"a": 1}


@pytest.mark.parametrize(
    ("parser", "message"),
    [
        ("json.nothing", "its parser 'json.nothing' cannot be imported"),
        ("nothing", "its parser 'nothing' cannot be imported"),
        (split_lines, "is not accepted by its parser: ValueError"),
        (str.split, "holds a list"),
    ],
)
def test_parsers_that_fail(parser, message) -> None:
    with pytest.raises(UsageError, match=message):
        read(Config("c", parser=parser), Source("--config-value", None, "nothing"))


def test_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    beside = tmp_path / "flows"
    beside.mkdir()
    (beside / "c.json").write_text("{}")

    def chosen(config: Config) -> Source | None:
        return choose(config, None, CONTEXT, str(beside))

    assert chosen(Config("c")) is None
    assert chosen(Config("c", default="c.json")) == Source("its default", str(beside / "c.json"))
    (tmp_path / "c.json").write_text("{}")
    assert chosen(Config("c", default="c.json")) == Source("its default", "c.json"), "the working directory goes first"
    assert chosen(Config("c", default=lambda context: f"{context.flow_name}.json")) == Source("its default", "F.json")
    assert chosen(Config("c", default_value={"a": 1})) == Source("its default_value", None, {"a": 1})
    assert chosen(Config("c", default_value=lambda context: '{"a": 1}')).value == '{"a": 1}'
    assert chosen(Config("c", default_value={}, required=True)) == Source("its default_value", None, {})
    for config, message in (
        (Config("c", required=True), "the config 'c' is required"),
        (Config("c", default=lambda context: 1 / 0), "the default of config 'c' cannot be computed"),
        (Config("c", default=lambda context: 5), "its default is a path, not 5"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            chosen(config)
        assert caught.value.where is not None


def test_parsers_of_lists_of_packages() -> None:
    text = "numpy==1.26\npandas>=2, <3  # why\n\n# all\nrequests\nscipy ~=1.2\ntorch[cuda]\nx @ https://h/x.whl#a\n"
    assert requirements_txt_parser(text) == {
        "packages": {
            "numpy": "1.26", "pandas": ">=2,<3", "requests": "", "scipy": "~=1.2", "torch[cuda]": "",
            "x@https://h/x.whl#a": "",
        },
        "python": None,
    }  # fmt: skip
    for line in (
        "-r other.txt",
        "--index-url https://x",
        "numpy 1.2",
        "-e .",
        "a; python_version > '3'",
        "git+https://x",
    ):
        with pytest.raises(ValueError, match="line 2: "):
            requirements_txt_parser(f"numpy\n{line}")
    project = '[project]\nname = "a"\nrequires-python = ">=3.10"\ndependencies = ["numpy==1.26", "pandas>=2", "x"]\n'
    packages = {"numpy": "1.26", "pandas": ">=2", "x": ""}
    assert pyproject_toml_parser(project) == {"packages": packages, "python": ">=3.10"}
    assert pyproject_toml_parser("[tool.x]") == {"packages": {}, "python": None}
    conda = "name: x\nchannels:\n- c\ndependencies:\n- python=3.10\n- numpy==1.26\n- pandas>=2,<3\n- scipy\n"
    packages = {"numpy": "1.26", "pandas": ">=2,<3", "scipy": ""}
    assert conda_environment_yml_parser(conda) == {"packages": packages, "python": "3.10"}
    for item in ("pip: [x]", "c::zlib=1"):
        with pytest.raises(ValueError, match="dependencies: "):
            conda_environment_yml_parser(f"dependencies:\n- {item}\n")
    source = Source("--config-value", None, "numpy\n-e .")
    with pytest.raises(UsageError, match="is not accepted by its parser: ValueError: line 2"):
        read(Config("c", parser=requirements_txt_parser), source)


# -- types ---------------------------------------------------------------------------------------------------------


class Kind(enum.Enum):
    SMALL = "s"
    LARGE = "l"


@dataclass
class Layer:
    size: int
    name: str | None = None


@dataclass
class Train:
    lr: float
    optimizer: Literal["adam", "sgd"] = "adam"
    layers: list[Layer] = field(default_factory=list)
    limits: dict[str, int | float] = field(default_factory=dict)
    span: tuple[int, int] = (0, 1)
    kind: Kind = Kind.SMALL
    folder: Path = Path()
    first: Layer | None = None


@dataclass
class Checked:
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


def test_a_dataclass_is_filled() -> None:
    values = {
        "lr": 1,
        "layers": [{"size": 3}, {"size": 4, "name": "b"}],
        "limits": {"a": 1, "b": 2.5},
        "span": [2, 3],
        "kind": "LARGE",
        "folder": "x/y",
        "first": {"size": 1},
    }
    made = convert(values, Train, "c")
    assert made == Train(
        1.0, "adam", [Layer(3), Layer(4, "b")], {"a": 1, "b": 2.5}, (2, 3), Kind.LARGE, Path("x/y"), Layer(1)
    )
    assert type(made.lr) is float
    assert convert({"lr": 2.0, "kind": "l", "first": None}, Train, "c").kind is Kind.LARGE


@pytest.mark.parametrize(
    ("values", "messages"),
    [
        ({}, ["lr: it is missing (Train has no default for it)"]),
        ({"lr": "0.1"}, ["lr: a number is wanted, and it is '0.1'"]),
        ({"lr": True}, ["lr: a number is wanted, and it is True"]),
        ({"lr": 1, "optimiser": "sgd"}, ["optimiser: there is no such key in Train (did you mean 'optimizer'?)"]),
        ({"lr": 1, "optimizer": "sdg"}, ["one of 'adam', 'sgd', not 'sdg' (did you mean 'sgd'?)"]),
        ({"lr": 1, "layers": {}}, ["layers: a list is wanted, and it is a table of keys"]),
        ({"lr": 1, "layers": [{"size": 1.5}]}, ["layers[0].size: a whole number is wanted, and it is 1.5"]),
        ({"lr": 1, "layers": [{"size": 1}, 5]}, ["layers[1]: a table of keys is wanted, and it is 5"]),
        ({"lr": 1, "limits": {"a": "x"}}, ["limits.a: it is to be one of a whole number, a number, not 'x'"]),
        ({"lr": 1, "span": [1]}, ["span: 2 items are wanted, and there are 1"]),
        ({"lr": 1, "kind": "SMAL"}, ["kind: Kind is wanted, and it is 'SMAL' (did you mean 'SMALL'?)"]),
        ({"lr": 1, "first": 3}, ["first: a table of keys is wanted, and it is 3"]),
        ({"lr": None, "span": "ab"}, ["lr: a number is wanted, and it is nothing", "span: a list is wanted"]),
        ([1], ["a table of keys is wanted, and it is a list"]),
    ],
)
def test_what_does_not_fit_is_told_at_once(values: Any, messages: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        convert(values, Train, "config 'c'")
    lines = caught.value.headline.splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith("config 'c': ")
        assert message in line


def test_what_the_class_itself_refuses() -> None:
    with pytest.raises(UsageError, match="Checked does not accept it: ValueError: low is above high"):
        convert({"low": 2, "high": 1}, Checked, "c")


def test_the_file_the_line_and_the_key_are_told(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('lr = "fast"\n\n[[layers]]\nsize = 3\n[[layers]]\nsise = 4\n')
    with pytest.raises(UsageError) as caught:
        read(Config("train", type=Train), Source("--config", str(file)))
    assert caught.value.headline.splitlines() == [
        f"{file}:1: config 'train': lr: a number is wanted, and it is 'fast'",
        f"{file}:6: config 'train': layers[1].sise: there is no such key in Layer (did you mean 'size'?)",
        f"{file}:5: config 'train': layers[1].size: it is missing (Layer has no default for it)",
    ]


def test_a_pydantic_model(tmp_path: Path) -> None:
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")

    class Inner(pydantic.BaseModel):
        size: int

    Model = pydantic.create_model(
        "Model", __config__=pydantic.ConfigDict(extra="forbid"), lr=(float, 0.1), inner=(list[Inner], [])
    )
    assert convert({"lr": "0.5", "inner": [{"size": 1}]}, Model, "c").inner[0].size == 1
    file = tmp_path / "c.json"
    file.write_text('{\n"lr": "x",\n"inner": [{"size": 1}, {"size": "b"}],\n"iner": []}')
    with pytest.raises(UsageError) as caught:
        read(Config("c", type=Model), Source("--config", str(file)))
    lines = caught.value.headline.splitlines()
    assert lines[0].startswith(f"{file}:2: config 'c': lr: Input should be a valid number")
    assert lines[1].startswith(f"{file}:3: config 'c': inner[1].size: ")
    assert lines[2].endswith("(did you mean 'inner'?)")
