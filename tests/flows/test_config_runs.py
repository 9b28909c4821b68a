"""Configs in real runs: files and values on the command line, in steps, in the client, in what is resumed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

FLOW = """
    from dataclasses import dataclass, field

    from flowkit import Config, FlowSpec, Parameter, config_expr, current, environment, resources, retry, step


    @dataclass
    class Layer:
        size: int


    @dataclass
    class Net:
        name: str
        layers: list[Layer] = field(default_factory=list)


    class Train(FlowSpec):
        \"\"\"Trains.\"\"\"

        cfg = Config("train", default="train.toml", help="what to train")
        net = Config("net", default_value={"name": "none"}, type=Net)
        extra = Config("extra")

        rate = cfg.lr
        lr = Parameter("lr", default=cfg.lr)
        epochs = Parameter("epochs", default=config_expr("cfg.epochs * 2"))
        note = Parameter("note", default=lambda context: f"lr {context.configs['cfg'].lr}")

        @retry(**cfg.retry)
        @resources(cpu=cfg.cpu)
        @step
        def start(self):
            if current.retry_count < self.cfg.retry.times:
                raise ConnectionError("again")
            self.words = list(self.cfg.words)
            self.next(self.each, foreach="words")

        @environment(vars={"RATE": config_expr("str(cfg.lr)")})
        @step
        def each(self):
            import os

            self.seen = [os.environ["RATE"], self.input, self.cfg["lr"], self.net.name, self.extra, self.rate]
            self.next(self.join)

        @step
        def join(self, inputs):
            self.seen = [one.seen for one in inputs]
            self.sizes = [layer.size for layer in inputs[0].net.layers]
            self.next(self.choose)

        @step
        def choose(self):
            self.kind = "big" if self.cfg.lr > 0.2 else "small"
            self.next({self.cfg.switch: self.big, "small": self.small}, condition="kind")

        @step
        def big(self):
            self.next(self.end)

        @step
        def small(self):
            if self.cfg.get("fail") and current.origin_run_id is None:
                raise ValueError("only the first time")
            self.next(self.end)

        @step
        def end(self):
            self.told = [self.lr, self.epochs, self.note, type(self.cfg).__name__, self.kind]


    if __name__ == "__main__":
        Train()
"""

TOML = """
    lr = 0.1
    epochs = 3
    cpu = 1
    words = ["a", "b"]
    switch = "big"
    fail = true

    [retry]
    times = 1
    minutes_between_retries = 0
"""

VALUES = {
    "lr": 0.5, "epochs": 1, "cpu": 1, "words": ["c"], "switch": "big", "retry": {"times": 0},
}  # fmt: skip


def test_a_flow_with_configs(workspace: Any) -> None:
    workspace.write("flow.py", FLOW)
    workspace.write("train.toml", TOML)
    failed = workspace.run("run", check=1)
    assert "only the first time" in failed.stderr
    assert "python flow.py resume --origin-run-id 1" in failed.stderr
    # The run has its configs; its file is not needed any more, and another one does not count.
    workspace.write("train.toml", "lr = 7")
    workspace.run("resume", check=True)
    workspace.write("again.yaml", json.dumps(VALUES))
    workspace.run("--config", "train", "again.yaml", "--config-value", "net", '{"name": "n"}', "run", check=True)
    third, second, first = workspace.client().Flow("Train")
    assert first.data is None or not first.successful
    assert first["start"].task.current_attempt == 1, "its @retry is in the file"
    assert second.origin_pathspec == "Train/1"
    assert second.data.cfg["lr"] == 0.1
    assert type(second.data.cfg) is dict, "outside of steps a config is plain values"
    assert second.data.told == [0.1, 6, "lr 0.1", "ConfigValue", "small"]
    assert second["join"].task.data.seen == [["0.1", word, 0.1, "none", None, 0.1] for word in ("a", "b")]
    assert third.data.told == [0.5, 2, "lr 0.5", "ConfigValue", "big"]
    assert third["join"].task.data.seen == [["0.5", "c", 0.5, "n", None, 0.5]]
    assert third.data.net == {"name": "n"}
    assert third.data.extra is None
    shown = workspace.run("dump", "3/end", "--include", "cfg,net", check=True).stdout
    assert "'lr': 0.5" in shown


def test_the_environment_and_what_wins(workspace: Any) -> None:
    workspace.write("flow.py", FLOW)
    workspace.write("env.json", json.dumps({**VALUES, "lr": 1.0}))
    env = {
        "FLOWKIT_FLOW_CONFIG": json.dumps({"train": "env.json"}),
        "FLOWKIT_FLOW_CONFIG_VALUE": json.dumps({"net": {"name": "env", "layers": [{"size": 3}]}}),
    }
    workspace.run("run", "--lr", "9", "--task-start", "spawn", env=env, check=True)
    workspace.run("--config-value", "train", json.dumps(VALUES), "run", env=env, check=True)
    second, first = workspace.client().Flow("Train")
    assert first.data.told[:3] == [9.0, 2, "lr 1.0"]
    assert first["join"].task.data.sizes == [3]
    assert second.data.told[0] == 0.5, "the command line wins"
    assert second["join"].task.data.seen[0][3] == "env"


def test_bad_configs_are_told_before_anything_runs(workspace: Any) -> None:
    workspace.write("flow.py", FLOW)
    workspace.write("train.json", json.dumps(VALUES))
    workspace.write("broken.json", '{\n"lr": 1,\n"epochs"\n}')
    workspace.write("net.toml", 'name = 5\n\n[[layers]]\nsise = "x"\n')
    default = ("--config", "train", "train.json")

    def told(*words: str, env: dict[str, str] | None = None, code: int = 2) -> str:
        result = workspace.run(*words, "run", env=env, check=code)
        assert "Traceback" not in result.output
        return result.stderr

    assert "config 'train': the file train.toml cannot be read: No such file" in told()
    missing = told("--config", "train", "trian.json")
    assert "config 'train': the file trian.json cannot be read" in missing
    assert "did you mean 'train.json'?" in missing
    assert "broken.json:4: config 'train': the file broken.json is no JSON" in told("--config", "train", "broken.json")
    unknown = told("--config", "trian", "train.json")
    assert "--config: Train has no config 'trian'" in unknown
    assert "did you mean 'train'?" in unknown
    both = told(*default, "--config-value", "train", "{}")
    assert "the config 'train' is given a file by --config and a value by --config-value" in both
    assert "--config: the config 'train' is given twice" in told(*default, *default)
    assert "no JSON: Expecting property name" in told("--config-value", "train", "{lr: 1}")
    assert "Option '--config' requires 2 arguments" in workspace.run("--config", "train", check=2).stderr
    typed = told(*default, "--config", "net", "net.toml", "--config-value", "extra", "[1]")
    assert "net.toml:1: config 'net': name: a text is wanted, and it is 5" in typed
    assert "net.toml:4: config 'net': layers[0].sise: there is no such key in Layer (did you mean 'size'?)" in typed
    assert "net.toml:3: config 'net': layers[0].size: it is missing" in typed
    assert "config 'extra': the value given by --config-value holds a list" in typed, "all at once"
    for variable, wrong in (("FLOWKIT_FLOW_CONFIG", "[1]"), ("FLOWKIT_FLOW_CONFIG_VALUE", "{")):
        assert f"{variable} is no JSON mapping from names of configs" in told(env={variable: wrong})
    keys = told("--config-value", "train", '{"lr": 0.1}', code=3)
    assert "cfg has no 'retry'" in keys
    assert "cfg has no 'cpu'" in keys
    assert "config_expr('cfg.epochs * 2') cannot be computed: AttributeError: the config has no key 'epochs'" in keys
    assert keys.count("flow.py:") >= 3, "each with its line"
    assert not (Path(workspace.path) / ".flowkit" / "flows").exists(), "no run was begun"


def test_commands_that_need_no_config(workspace: Any) -> None:
    workspace.write("flow.py", FLOW)
    workspace.write("train.json", json.dumps(VALUES))
    workspace.run("--config", "train", "train.json", "run", check=True)
    for command in (["status"], ["logs", "1/end"], ["dump", "1/end"], ["tag", "list", "1"], ["version"]):
        workspace.run(*command, check=True)
    help = workspace.run("run", "--help", check=True).stdout
    assert "--lr" in help
    top = workspace.run("--help", check=True).stdout
    assert "--config [train | net | extra] FILE" in " ".join(top.split())
    assert "what to train, default: train.toml" in " ".join(top.split())
    shown = workspace.run("--config", "train", "train.json", "output-raw", "--json", check=True)
    start = json.loads(shown.stdout)["steps"]["start"]
    assert {each["name"]: each["attributes"] for each in start["decorators"]}["resources"]["cpu"] == 1
    refused = workspace.run("--config", "train", "train.json", "resume", check=2).stderr
    assert "resume takes no --config and no --config-value" in refused
    assert "there is no run Train/99" in workspace.run("resume", "--origin-run-id", "99", check=4).stderr


def test_without_yaml_installed(workspace: Any) -> None:
    workspace.write("flow.py", FLOW)
    workspace.write("train.yaml", "lr: 1")
    workspace.write("yaml.py", "raise ImportError('not here')")
    said = workspace.run("--config", "train", "train.yaml", "check", check=2).stderr
    assert "configs in YAML need a package that is not installed: PyYAML" in said
    assert "pip install 'flowkit[yaml]'" in said


BASE = """
    from flowkit import Config, FlowSpec, IncludeFile, Parameter, current, step, timeout


    class Base(FlowSpec):
        cfg = Config("cfg", default_value={"name": "shared", "path": "words.txt", "minutes": 1, "big": [1, 2]})
        words = IncludeFile("words", default=cfg.path)
        many = Parameter("many", default=cfg.big)
        times = Parameter("times", type=int, default=cfg.minutes, help=cfg.name)

        @timeout(minutes=cfg.minutes)
        @step
        def start(self):
            self.many.append(3)  # its own copy
            self.seen = [self.words, self.many, self.times, current.project_name]
            self.next(self.middle)
"""
DERIVED = """
    import os
    import time

    from flowkit import Config, config_expr, current, project, step
    from shared import Base


    @project(name=config_expr("cfg.name"))
    class Derived(Base):
        other = Config("other", default_value='{"a": {"b": 2}}')
        constant = config_expr("other.a.b + 1")

        @step
        def middle(self):
            if os.path.exists("wait") and current.retry_count == 0:
                open("waiting", "w").close()
                time.sleep(60)
            self.seen += [self.constant, self.cfg.name]
            self.next(self.end)

        @step
        def end(self):
            self.kept = self.cfg.big


    if __name__ == "__main__":
        Derived()
"""


def test_configs_of_base_flows_and_a_run_that_is_taken_over(workspace: Any) -> None:
    workspace.write("shared.py", BASE)
    workspace.write("flow.py", DERIVED)
    workspace.write("words.txt", "hi")
    workspace.run("run", check=True)
    help = " ".join(workspace.run("run", "--help", check=True).stdout.split())
    assert "--times INTEGER shared [default: 1]" in help
    assert "--words FILE [default: words.txt]" in help
    workspace.write("wait", "")
    values = json.dumps({"name": "taken", "path": "words.txt", "minutes": 2, "big": []})
    process = workspace.start("--config-value", "cfg", values, "run")
    deadline = time.monotonic() + 60
    while not (workspace.path / "waiting").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    (workspace.path / "wait").unlink()
    refused = workspace.run("--config", "cfg", "x.json", "resume", "--reattach", "2", check=2).stderr
    assert "resume takes no --config" in refused
    workspace.run("resume", "--reattach", "2", check=True)
    taken, first = workspace.client().Flow("Derived")
    assert first.data.seen == ["hi", [1, 2, 3], 1, "shared", 3, "shared"]
    assert first.data.kept == [1, 2]
    assert "project:shared" in first.system_tags
    assert taken.id == "2"
    assert taken.successful
    assert taken.data.seen == ["hi", [3], 2, "taken", 3, "taken"]
    assert "project:taken" in taken.system_tags


def test_spin_has_the_configs_of_the_run(workspace: Any) -> None:
    workspace.write("flow.py", FLOW)
    workspace.write("train.json", json.dumps(VALUES))
    workspace.run("--config", "train", "train.json", "run", check=True)
    (workspace.path / "train.json").unlink()
    spun = workspace.run("spin", "end", check=True)
    assert "end/0 succeeded" in spun.output
    refused = workspace.run("--config-value", "train", "{}", "spin", "end", check=2).stderr
    assert "spin takes no --config and no --config-value" in refused
