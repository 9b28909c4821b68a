"""Production tokens: who may change what is deployed."""

from __future__ import annotations

import os
import re
import stat

import pytest

from flowkit.deployer.target import DeploymentRecord
from flowkit.deployer.tokens import Decision, Wish, check_token, decide, keep_token, kept_token, new_token, token_key
from flowkit.exceptions import Conflict, UsageError


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """A user's own folder, empty."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "flowkit" / "tokens"


def _deployed(token, flow="Train", user="ann", **more):
    return DeploymentRecord("argo", "train", flow, user=user, token=token, **more)


def _decide(found, wish=None, **more):
    return decide("argo", "Argo", "train", "Train", found, wish or Wish(), **more)


def test_the_first_one_gets_a_token_and_others_have_to_know_it(state):
    first = _decide(None)
    assert re.fullmatch(r"train-0-[a-z0-9]{8}", first.token)
    assert first.told
    found = _deployed(first.token)
    with pytest.raises(Conflict, match="deployed by ann, with a production token that you do not have") as refused:
        _decide(found)
    assert first.token not in str(refused.value)
    with pytest.raises(Conflict, match="not the production token"):
        _decide(found, Wish(authorize="train-0-wrong"))
    assert _decide(found, Wish(authorize=first.token)) == Decision(first.token, False)
    with pytest.raises(Conflict):
        check_token("argo", "Argo", found, None)
    keep_token("argo", "train", first.token)
    check_token("argo", "Argo", found, None)
    assert _decide(found) == Decision(first.token, False)
    file = state / "argo" / "train.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert os.listdir(file.parent) == ["train.json"]


def test_a_token_is_replaced_by_who_has_it():
    keep_token("argo", "train", "train-3-old")
    found = _deployed("train-3-old")
    assert re.fullmatch(r"train-4-[a-z0-9]{8}", _decide(found, Wish(generate=True)).token)
    assert _decide(found, Wish(new="mine")) == Decision("mine", True)
    with pytest.raises(UsageError, match="exclude each other"):
        _decide(found, Wish(new="mine", generate=True))
    for wrong in ("", "with space", "a/b", "é", "-x", "x" * 101, "a\nb"):
        with pytest.raises(UsageError, match="cannot be a production token"):
            _decide(found, Wish(new=wrong))
        with pytest.raises(UsageError, match="cannot be a production token"):
            _decide(found, Wish(authorize=wrong))


def test_another_flow_of_the_name_is_not_replaced_without_its_own_token():
    keep_token("argo", "train", "train-0-a")
    found = _deployed("train-0-a", flow="Other")
    with pytest.raises(Conflict, match="another flow, Other"):
        _decide(found)
    assert _decide(found, Wish(authorize="train-0-a")).token == "train-0-a"
    # Somebody has edited the token away.
    assert _decide(_deployed("")).token == "train-0-a"
    with pytest.raises(Conflict, match="another flow"):
        _decide(_deployed("", flow="Other"))


def test_flows_of_a_project_and_branch_share_a_token():
    place = {"project": "fraud", "branch": "prod"}
    assert token_key("fraud.prod.train", "fraud", "prod") == "fraud.prod"
    first = _decide(None, **place)
    assert first.token.startswith("fraud.prod-0-")
    keep_token("argo", "fraud.prod", first.token)
    second = decide("argo", "Argo", "fraud.prod.other", "Other", None, Wish(), **place)
    assert second == Decision(first.token, False)
    assert decide("argo", "Argo", "x", "X", None, Wish(), project="fraud", branch="user.ann").token != first.token
    # A colleague who deploys another flow of the branch brings its token along.
    assert _decide(None, Wish(authorize="given"), **place).token == "given"


def test_what_is_kept_is_one_file_each_whatever_the_name(state):
    names = ["..", "a/b", "../../x", "é" * 100, "y" * 250, "z" * 251, "Train", "train", ".", "a%2Fb"]
    for number, name in enumerate(names):
        keep_token("argo", name, f"token-{number}")
    assert [kept_token("argo", name) for name in names] == [f"token-{number}" for number in range(len(names))]
    assert len(os.listdir(state / "argo")) == len(names)
    assert os.listdir(state) == ["argo"]
    for content in ("", "[]", '{"token": 3}', '{"token": "a b"}', "\x00"):
        (state / "argo" / "Train.json").write_text(content)
        assert kept_token("argo", "Train") is None


def test_a_new_token_fits_wherever_tokens_go():
    for key in ("Train", "fraud.user.Ann-Marie", "x" * 300, "日本", "---", "a_b"):
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*-0-[a-z0-9]{8}", new_token(key)), key
        assert len(new_token(key)) < 80
    assert new_token("a", "a-41-xyz").startswith("a-42-")
    assert new_token("a", "whatever").startswith("a-0-")
