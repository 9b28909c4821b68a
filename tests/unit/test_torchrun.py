"""``@pytorch_parallel``: the variables of a gang's nodes, and the launcher, with a stand-in for PyTorch."""

from __future__ import annotations

import pytest

from flowkit.context import current
from flowkit.decorators.attach import configure_all
from flowkit.decorators.parallel import ParallelInfo, resolved
from flowkit.decorators.torchrun import TorchRun, free_port
from flowkit.exceptions import TaskError
from flowkit.model.definition import define

STAND_IN = '''
    """What PyTorch's launcher would be: it says what it was told."""

    import json
    import os
    import sys

    names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "WORLD_SIZE", "LOCAL_RANK")
    print("launched", json.dumps(sys.argv[1:]), flush=True)
    print("variables", json.dumps([os.environ[name] for name in names]), flush=True)
    sys.exit(3 if "--fail" in sys.argv else 0)
'''

FLOW = """
    import os

    from flowkit import FlowSpec, Parameter, current, pytorch_parallel, step


    class Torch(FlowSpec):
        fail = Parameter("fail", default=False)

        @step
        def start(self):
            self.next(self.train, num_parallel=2)

        @pytorch_parallel(master_port=29_100)
        @step
        def train(self):
            current.torch.run("train.py", {"epochs": 3, "amp": True, "log": None, "fail": self.fail}, nproc_per_node=4)
            self.rank = int(os.environ["RANK"])
            self.next(self.join)

        @step
        def join(self, inputs):
            print("ranks", [task.rank for task in inputs])
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Torch()
"""


@pytest.fixture
def torch_flow(workspace):
    """A flow that trains, where something called torch is installed."""
    workspace.write("site/torch/__init__.py", "")
    workspace.write("site/torch/distributed/__init__.py", "")
    workspace.write("site/torch/distributed/run.py", STAND_IN)
    workspace.write("flow.py", FLOW)
    workspace.env["PYTHONPATH"] = str(workspace.path / "site")
    return workspace


def test_every_node_starts_the_launcher_with_its_rank(torch_flow) -> None:
    done = torch_flow.run("run", check=True)
    assert "ranks [0, 1]" in done.stdout
    for rank in (0, 1):
        words = torch_flow.run("logs", f"1/train/{rank}", check=True).stdout.splitlines()
        assert words == [
            f'launched ["--nnodes=2", "--node-rank={rank}", "--master-addr=127.0.0.1", "--master-port=29100", '
            '"--nproc-per-node=4", "train.py", "--epochs", "3", "--amp"]',
            f'variables ["127.0.0.1", "29100", "{rank}", "2", "0"]',
        ]


def test_a_launcher_that_fails_fails_the_step(torch_flow) -> None:
    failed = torch_flow.run("run", "--fail", "true", check=1)
    assert "the launcher ended with exit status 3 on node" in failed.output


def gang(node: int = 1) -> ParallelInfo:
    return ParallelInfo("10.0.0.1", 4, node, "0")


def test_a_module_and_options_of_the_launcher() -> None:
    command = TorchRun(gang(), 4000).command(
        "package.train", ["--lr", 0.1], nproc_per_node="gpu", executable="/opt/python", options={"max_restarts": 0}
    )
    assert command[:3] == ["/opt/python", "-m", "torch.distributed.run"]
    assert command[3:] == [
        "--nnodes=4", "--node-rank=1", "--master-addr=10.0.0.1", "--master-port=4000", "--nproc-per-node=gpu",
        "--max-restarts=0", "--module", "package.train", "--lr", "0.1",
    ]  # fmt: skip


def test_without_pytorch_it_says_so(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TaskError, match="PyTorch is not installed") as caught:
        TorchRun(gang(), 4000).run("train.py")
    assert "image" in str(caught.value.hint)


def test_a_python_that_is_not_there() -> None:
    with pytest.raises(TaskError, match="/no/such/python cannot be started"):
        TorchRun(gang(), 4000).run("train.py", executable="/no/such/python")


def test_the_port_of_a_gang_is_the_same_in_every_node() -> None:
    current.enter({"flow_name": "Torch", "run_id": "7", "step_name": "train"})
    try:
        assert free_port("0") == free_port("0")
        assert 20_000 <= free_port("0") < 30_000
        assert free_port("0") != free_port("1.0")
    finally:
        current.leave()


def test_a_control_node_gets_its_name_while_the_others_wait(monkeypatch) -> None:
    import socket

    tried = []

    def later(host: str, *args: object, **options: object) -> list[object]:
        tried.append(host)
        if len(tried) < 3:
            raise socket.gaierror("no such host yet")
        return [(0, 0, 0, "", ("10.0.0.7", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", later)
    assert resolved("job-0.job", 30.0) == "10.0.0.7"
    assert resolved("10.0.0.1", 0.0) == "10.0.0.1"
    assert len(tried) == 3


def test_a_control_node_that_never_gets_its_name() -> None:
    with pytest.raises(TaskError, match="has no address after"):
        resolved("no-such-host.invalid", 0.0)


def test_a_wrong_port_is_told() -> None:
    from flowkit import FlowSpec, pytorch_parallel, step

    class Torch(FlowSpec):
        @step
        def start(self):
            self.next(self.train, num_parallel=2)

        @pytorch_parallel(master_port="high")
        @step
        def train(self):
            self.next(self.end)

        @step
        def end(self):
            pass

    (problem,) = configure_all(define(Torch), {})
    assert "master_port must be a whole number from 1 to 65535" in str(problem)
