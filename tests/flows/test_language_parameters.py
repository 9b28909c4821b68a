"""Parameters and included files: every type, every way to give a value, and every mistake."""

from __future__ import annotations

from typing import Any

import pytest


def write(workspace: Any, body: str, *, head: str = "") -> None:
    """Write a flow called Story whose start keeps every parameter's value and type."""
    workspace.write(
        "flow.py",
        f"import enum\nfrom flowkit import *\n{head}\n\nclass Story(FlowSpec):\n{body}\n"
        "    @step\n    def start(self):\n"
        "        self.values = {name: getattr(self, name) for name in current.parameter_names}\n"
        "        self.next(self.end)\n\n"
        "    @step\n    def end(self):\n        pass\n\n\n"
        "if __name__ == '__main__':\n    Story()\n",
    )


def values(workspace: Any) -> Any:
    """What the steps of the newest run saw."""
    return workspace.client().Flow("Story").latest_run.data.values


ALL = """
    i = Parameter("i", default=5, help="a number of things")
    f = Parameter("f", default=1.5)
    whole = Parameter("whole", type=float, default=2)
    b = Parameter("b", default=True)
    s = Parameter("s", default="text")
    nothing = Parameter("nothing")
    maybe = Parameter("maybe", type=int)
    j = Parameter("j", type=JSONType, default='{"a": [1]}')
    jd = Parameter("jd", default={"b": 2})
    jl = Parameter("jl", default=[1, 2])
    l = Parameter("l", separator=",", default="x,y")
    ll = Parameter("ll", separator="::", default=["p", "q"])
    dashed = Parameter("dash-ed", default="d")
    under_score = Parameter("under_score", default=1)
    other = Parameter("named", default="the attribute is called otherwise")
    called = Parameter("called", type=int, default=lambda context: 40 + len(context.parameter_name))
    context = Parameter("context", type=JSONType, default=told)
    colour = Parameter("colour", type=Colour, default=Colour.RED)
    size = Parameter("size", type=["small", "large"], default="small")
    level = Parameter("level", type=(1, 2, 3), default=2)
    choice = Parameter("choice", type=click.Choice(["x", "y"]), default="x")
    day = Parameter("day", type=datetime.date.fromisoformat, default="2024-01-31")
"""
HEAD = """
import datetime
import click


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


def told(context):
    return {"flow": context.flow_name, "user": context.user_name, "store": context.ds_type}
"""


def test_values_come_from_defaults_the_environment_and_the_command_line(workspace: Any) -> None:
    write(workspace, ALL, head=HEAD)
    workspace.run("run", check=True)
    assert raw(workspace, 1) == {
        "i": "5",
        "f": "1.5",
        "whole": "2.0",
        "b": "True",
        "s": "'text'",
        "nothing": "None",
        "maybe": "None",
        "j": "{'a': [1]}",
        "jd": "{'b': 2}",
        "jl": "[1, 2]",
        "l": "['x', 'y']",
        "ll": "['p', 'q']",
        "dashed": "'d'",
        "under_score": "1",
        "other": "'the attribute is called otherwise'",
        "called": "46",
        "context": "{'flow': 'Story', 'user': 'tester', 'store': 'local'}",
        "colour": "<Colour.RED: 1>",
        "size": "'small'",
        "level": "2",
        "choice": "'x'",
        "day": "datetime.date(2024, 1, 31)",
    }
    workspace.run(
        *("run", "--i", -7, "--f", "1e3", "--whole", 3, "--b", "no", "--s", "", "--nothing", "--b", "--maybe=0"),
        *("--j", '[1, {"ä": null}]', "--jd", "3", "--l", "a,,b", "--ll", "", "--dash-ed", "é'\"\n", "--under-score", 4),
        *("--named", "n", "--called", 9, "--colour", "BLUE", "--size", "large", "--level", 3, "--choice", "y"),
        *("--day", "2025-12-24"),
        env={"FLOWKIT_RUN_I": "11"},
        check=True,
    )
    assert raw(workspace, 2) == {
        "i": "-7",
        "f": "1000.0",
        "whole": "3.0",
        "b": "False",
        "s": "''",
        "nothing": "'--b'",
        "maybe": "0",
        "j": "[1, {'ä': None}]",
        "jd": "3",
        "jl": "[1, 2]",
        "l": "['a', '', 'b']",
        "ll": "[]",
        "dashed": "'é\\'\"\\n'",
        "under_score": "4",
        "other": "'n'",
        "called": "9",
        "context": "{'flow': 'Story', 'user': 'tester', 'store': 'local'}",
        "colour": "<Colour.BLUE: 2>",
        "size": "'large'",
        "level": "3",
        "choice": "'y'",
        "day": "datetime.date(2025, 12, 24)",
    }
    names = (
        ("I", "11"),
        ("DASH_ED", "env"),
        ("UNDER_SCORE", "2"),
        ("L", "q,r"),
        ("B", "0"),
        ("S", ""),
        ("NAMED", "e"),
    )  # "" is as not given
    env = {f"FLOWKIT_RUN_{name}": value for name, value in names}
    workspace.run("run", "--under_score", 3, env=env, check=True)
    third = raw(workspace, 3)
    assert [third[name] for name in ("i", "dashed", "under_score", "l", "b", "s", "other")] == [
        "11",
        "'env'",
        "3",
        "['q', 'r']",
        "False",
        "'text'",
        "'e'",
    ]
    help_text = workspace.run("run", "--help", check=True).stdout
    for part in ("--dash-ed", "--under-score", "a number of things", "[default: 5]", "--called"):
        assert part in help_text
    for form, wanted in (("TRUE", "True"), ("on", "True"), ("y", "True"), ("f", "False"), ("Off", "False")):
        workspace.run("run", "--b", form, check=True)
        assert values_of(workspace)["b"] == wanted


def raw(workspace: Any, run: int) -> dict[str, str]:
    """The values of a run as text; those of the flow's own classes can be loaded where the flow is imported."""
    code = f"""
        import sys
        sys.argv = ["flow.py"]
        import flow, __main__
        __main__.Colour = flow.Colour
        from flowkit import Run
        import json
        print(json.dumps({{name: repr(value) for name, value in Run("Story/{run}").data.values.items()}}))
    """
    import json

    got: dict[str, str] = json.loads(workspace.python(code, check=True).stdout)
    return got


def values_of(workspace: Any) -> dict[str, str]:
    """As `raw`, of the newest run."""
    return raw(workspace, int(workspace.client().Flow("Story").latest_run.id))


@pytest.mark.parametrize(
    "declaration",
    [
        "Parameter('max-workers')",
        "Parameter('max_workers')",
        "Parameter('Tag')",
        "Parameter('run-id')",
        "Parameter('with')",
        "Parameter('')",
        "Parameter(3)",
        "Parameter('two words')",
        "Parameter('_hidden')",
        "Parameter('größe')",
        "Parameter('1st')",
        "Parameter('a', typo=3)",
        "Parameter('a', type=int, default='abc')",
        "Parameter('a', type=int, default=1.5)",
        "Parameter('a', type=int, default=True)",
        "Parameter('a', type=bool, default=1)",
        "Parameter('a', type=str, default=3)",
        "Parameter('a', type=int, separator=',')",
        "Parameter('a', type=['x', 'y'], default='z')",
        "Parameter('a', type=JSONType, default='{')",
        "Parameter('a', default=Parameter('b'))",
        "IncludeFile('a', default=3)",
        "IncludeFile('params')",
    ],
)
def test_a_wrong_declaration_is_shown_with_its_line(workspace: Any, declaration: str) -> None:
    write(workspace, f"    a = {declaration}\n")
    result = workspace.run("check", check=2)
    assert "Traceback" not in result.output
    assert "flow.py:6: " in result.stderr, str(result)
    assert result.stdout == ""


def test_names_are_compared_as_users_type_them(workspace: Any) -> None:
    write(
        workspace,
        """
    one = Parameter("dash-ed")
    two = Parameter("Dash_ed")
    foreach_stack = Parameter("stack")
""",
    )
    result = workspace.run("check", check=3)
    assert "two parameters are called 'Dash_ed'" in result.stderr
    assert "the parameter 'foreach_stack' has the name of something that every flow has" in result.stderr
    assert result.stderr.count("flow.py:") == 2


def test_wrong_values_are_told_all_at_once(workspace: Any) -> None:
    write(
        workspace,
        """
    must = Parameter("must", required=True)
    also = Parameter("also", type=int, required=True, help="how many")
    broken = Parameter("broken", default=lambda context: {}["no key"])
    wrong = Parameter("wrong", type=int, default=lambda context: "text")
"""
        + ALL,
        head=HEAD,
    )
    given = workspace.run(
        *("run", "--i", "x", "--f", "1,5", "--b", "maybe", "--j", "{", "--colour", "BLEU", "--size", "smal"),
        *("--level", 4, "--choice", "z", "--day", "yesterday", "--maybe", "3.0", "--must", ""),
        check=2,
    )
    for text in (
        "parameter 'i' takes a whole number; got 'x'",
        "parameter 'f' takes a number; got '1,5'",
        "parameter 'b' takes true or false; got 'maybe'",
        "parameter 'j' takes JSON; got '{'",
        "parameter 'colour' takes one of RED, BLUE; got 'BLEU'",
        "did you mean 'BLUE'?",
        "did you mean 'small'?",
        "parameter 'level' takes one of 1, 2, 3; got '4'",
        "parameter 'choice'",
        "parameter 'day'",
        "Invalid isoformat string",
        "parameter 'maybe' takes a whole number; got '3.0'",
    ):
        assert text in given.stderr
    assert not (workspace.path / ".flowkit").exists() or not workspace.client().Flowkit().flows
    missing = workspace.run("run", check=2)
    for text in (
        "the parameter 'must' is required",
        "give it: --also <a whole number>",
        "flow.py:21: the default of parameter 'broken' cannot be computed: KeyError: 'no key'",
        "parameter 'wrong' takes a whole number; its default is 'text'",
    ):
        assert text in missing.stderr
    unknown = workspace.run("run", "--must", "x", "--mayb", 3, check=2)
    assert "there is no option --mayb" in unknown.stderr
    assert "--maybe" in unknown.stderr
    nothing = workspace.run("run", "--i", check=2)
    assert "--i" in nothing.stderr
    for result in (given, missing, unknown, nothing):
        assert "Traceback" not in result.output
        assert result.stdout == ""


def test_files_are_read_when_the_run_starts(workspace: Any) -> None:
    workspace.write("data.csv", "a,b\n1,2\n")
    (workspace.path / "raw.bin").write_bytes(b"\x00\xff")
    (workspace.path / "latin.txt").write_bytes("grüß".encode("latin-1"))
    workspace.write("empty.txt", "")
    workspace.write(
        "parsers.py", "def lines(text):\n    return text.split()\n\ndef refuse(text):\n    raise KeyError('no')\n"
    )
    write(
        workspace,
        """
    data = IncludeFile("data", default="data.csv")
    raw = IncludeFile("raw", is_text=False, default="raw.bin")
    latin = IncludeFile("latin", encoding="latin-1", default="latin.txt")
    none = IncludeFile("none")
    rows = IncludeFile("rows", default="data.csv", parser=lambda text: [row.split(",") for row in text.splitlines()])
    words = IncludeFile("words", default=lambda context: "data.csv", parser="parsers.lines")
    absent = IncludeFile("absent", default="is_not_there.txt")
""",
    )
    missing = workspace.run("run", check=2)
    assert "parameter 'absent': the file is_not_there.txt cannot be read" in missing.stderr
    workspace.run("run", "--absent", "empty.txt", check=True)
    got = values(workspace)
    assert got == {
        "data": "a,b\n1,2\n",
        "raw": b"\x00\xff",
        "latin": "grüß",
        "none": None,
        "rows": [["a", "b"], ["1", "2"]],
        "words": ["a,b", "1,2"],
        "absent": "",
    }
    # The content belongs to the run: what happens to the file afterwards is of no concern.
    workspace.write("data.csv", "changed")
    assert workspace.client().Run("Story/1").data.data == "a,b\n1,2\n"
    binary = workspace.run("run", "--absent", "raw.bin", "--none", "latin.txt", check=2)
    assert "parameter 'absent': the file raw.bin is not utf-8 text" in binary.stderr
    assert "parameter 'none': the file latin.txt is not utf-8 text" in binary.stderr
    assert "is_text=False" in binary.stderr
    folder = workspace.run("run", "--absent", ".", check=2)
    assert "the file . cannot be read" in folder.stderr
    for parser, text in (
        ("parsers.refuse", "KeyError: 'no'"),
        ("parsers.nothing", "nothing"),
        ("no_module.x", "no_module"),
    ):
        write(workspace, f"    rows = IncludeFile('rows', default='data.csv', parser='{parser}')\n")
        refused = workspace.run("run", check=2)
        assert "parameter 'rows': the parser" in refused.stderr
        assert text in refused.stderr
        assert "Traceback" not in refused.output


def test_an_included_file_that_has_to_be_given(workspace: Any) -> None:
    write(workspace, "    data = IncludeFile('data', required=True, help='the table')\n")
    missing = workspace.run("run", check=2)
    assert "the parameter 'data' is required" in missing.stderr
    assert "--data <a path>" in missing.stderr
    assert "flow.py:6" in missing.stderr
    workspace.write("x.txt", "x")
    workspace.run("run", "--data", workspace.path / "x.txt", check=True)
    assert values(workspace) == {"data": "x"}
