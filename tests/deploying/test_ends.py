"""When a run is over, on every scheduler: exit hooks are called and people are told, once, whatever the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from heard_ends import NOTIFY, Heard, opened, started, written

pytestmark = pytest.mark.deploying


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[Heard]:
    """Whoever wants to know how runs end."""
    with opened(tmp_path / "hooks") as found:
        yield found


def test_in_the_box(workspace: Any, heard: Heard) -> None:
    written(workspace, heard).env["FLOWKIT_NOTIFY_URL"] = heard.url
    workspace.run("local", "create", *NOTIFY, check=True)
    heard.check(started(workspace, "local"), started(workspace, "local", "--fail", "true"))


def test_on_argo_workflows(folder_user: Any, argo: Any, kubernetes_api: Any, heard: Heard) -> None:
    from argo_fixtures import run_on_argo

    written(folder_user, heard)
    known = kubernetes_api.controller.knobs.node_environment
    kubernetes_api.set(node_environment={**known, "FLOWKIT_NOTIFY_URL": heard.url})
    ends = [
        run_on_argo(folder_user, argo, parameters={"fail": fail}, create=NOTIFY, target="argo-on-folder")
        for fail in (False, True)
    ]
    assert [end.state for end in ends] == ["succeeded", "failed"]
    heard.check(*(end.pathspec for end in ends))


def test_on_step_functions(cloud: Any, machines: Any, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    from machine_service import run_through_step_functions

    written(cloud, heard)
    monkeypatch.setitem(machines.image_environment, "FLOWKIT_NOTIFY_URL", heard.url)
    ends = [
        run_through_step_functions(machines, cloud, "flow.py", *NOTIFY, parameters={"fail": fail})
        for fail in ("false", "true")
    ]
    assert [state for _, state in ends] == ["succeeded", "failed"]
    heard.check(*(run for run, _ in ends))


def test_as_a_cronjob(argo_user: Any, kubernetes_api: Any, heard: Heard) -> None:
    written(argo_user, heard)
    known = kubernetes_api.controller.knobs.node_environment
    inside = {**known, "KUBECONFIG": argo_user.env["KUBECONFIG"], "FLOWKIT_NOTIFY_URL": heard.url}
    kubernetes_api.set(node_environment=inside)
    argo_user.run("kubernetes", "create", *NOTIFY, check=True)
    heard.check(started(argo_user, "kubernetes"), started(argo_user, "kubernetes", "--fail", "true"))
