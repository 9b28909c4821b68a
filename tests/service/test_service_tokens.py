"""Tokens, by the commands that make them; and the log of writes that tells what was done with them."""

from __future__ import annotations

import json
import re
import time

import pytest
import requests
from service_process import DEADLINE, ServiceProcess

from flowkit.exceptions import NotFound, StoreError, UsageError
from flowkit.metadata_service.access import Caller
from flowkit.metadata_service.audit import Audit
from flowkit.metadata_service.databases import open_store
from flowkit.metadata_service.refused import Refused
from flowkit.metadata_service.token_desk import TokenDesk
from flowkit.metadata_service.tokens import Tokens, new_token

TOKEN = re.compile(r"fk_([0-9a-z]{12})_([0-9A-Za-z]{43})\n")


def test_a_token_is_made_used_listed_and_revoked(workspace):
    where = ("--database", "team")
    made = workspace.flowkit("service", "token", "create", "ada's laptop", "--project", "recs", *where, check=True)
    form = TOKEN.fullmatch(made.stdout)
    assert form, made.stdout
    assert form[2] not in made.stderr
    assert "write for recs" in made.stderr
    for file in (workspace.path / "team").rglob("*"):
        if file.is_file():
            assert form[2].encode() not in file.read_bytes(), "the database has the hash only"
    listed = workspace.flowkit("service", "token", "list", *where, check=True)
    assert form[1] in listed.stdout
    assert "ada's laptop" in listed.stdout
    assert "good" in listed.stdout
    assert form[2] not in listed.stdout + listed.stderr
    with ServiceProcess(workspace.path, "--authentication", *where) as service:
        headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
        assert requests.get(f"{service.url}/v1/runs", headers=headers, timeout=DEADLINE).status_code == 200
        assert form[2] not in service.stderr
        gone = workspace.flowkit("service", "token", "revoke", form[1], *where, check=True)
        assert "ada's laptop" in gone.stderr
        stop = time.monotonic() + DEADLINE
        while requests.get(f"{service.url}/v1/runs", headers=headers, timeout=DEADLINE).status_code != 401:
            assert time.monotonic() < stop
            time.sleep(0.05)
        assert service.stop() == 0
        assert form[2] not in service.stderr
    told = json.loads(workspace.flowkit("service", "token", "list", "--json", *where, check=True).stdout)
    assert [(each["id"], each["state"], each["projects"]) for each in told] == [(form[1], "revoked", ["recs"])]
    assert told[0]["used"] >= told[0]["created"]


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("create",), 2, "NAME"),
        (("create", "x", "--expires", "soon"), 2, "90d"),
        (("create", "x", "--expires", "0d"), 2, "90d"),
        (("create", "x", "--scope", "root"), 2, "admin"),
        (("create", "x", "--project", "a b"), 2, "a b"),
        (("create", ""), 2, "name"),
        (("create", "a\nb"), 2, "name"),
        (("revoke", "abcdefghijkl"), 4, "token list"),
        (("revoke", "'; DROP TABLE tokens; --"), 4, "token list"),
        (("revok", "x"), 2, "did you mean 'revoke'?"),
    ],
)
def test_mistakes_are_told(workspace, options, code, told):
    result = workspace.flowkit("service", "token", *options, "--database", "team", check=code)
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout


def test_what_a_token_is_good_for():
    token, text, digest = new_token("n", ["read", "admin", "read"], ["b", "a", "b"])
    assert (token.scopes, token.projects, token.expires) == (("read", "admin"), ("b", "a"), None)
    assert TOKEN.fullmatch(text + "\n")
    assert text.rpartition("_")[2] not in repr(token)
    assert len(digest) == 64
    for wrong in (("n", []), ("n", ["root"]), ("", ["read"]), ("x" * 300, ["read"])):
        with pytest.raises(UsageError):
            new_token(*wrong)
    with pytest.raises(UsageError):
        new_token("n", ["read"], [f"p{number}" for number in range(101)])
    with pytest.raises(UsageError):
        new_token("n", ["read"], expires=time.time() - 1)


def test_tokens_on_both_databases(database):
    with TokenDesk(database) as desk:
        token, text = desk.create("n", ["read", "write"], ["alpha"], seconds=3600)
        other, _ = desk.create("m", ["admin"])
        assert desk.tokens() == [token, other]
        with pytest.raises(NotFound):
            desk.revoke("no such one")
        store = open_store(database)
        tokens = Tokens(store, kept=0.0)
        assert not tokens.familiar(text)
        assert tokens.remembered(text) is None
        assert tokens.check(text) == Caller(f"token:{token.id}", "write", ("alpha",))
        assert tokens.familiar(text)
        assert tokens.remembered(text) is None, "what was read is old already"
        tokens.note_used()
        assert [each.used is not None for each in desk.tokens()] == [True, False]
        for wrong in (text[:-1] + "é", text + "\n", text.upper(), "fk__", other.id, "fk_" + "a" * 12 + text[15:], ""):
            with pytest.raises(Refused) as caught:
                tokens.check(wrong)
            assert caught.value.status == 401
            assert not tokens.familiar(wrong)
        revoked = desk.revoke(f"fk_{token.id}")
        assert revoked.revoked is not None
        assert desk.revoke(token.id).revoked == revoked.revoked, "the first time counts"
        with pytest.raises(Refused, match="revoked"):
            tokens.check(text)
        store.close()


def test_a_token_ends_at_its_time(sqlite_store, monkeypatch):
    token, text, digest = new_token("n", ["read"], expires=time.time() + 3600)
    sqlite_store.add_token(token, digest)
    tokens = Tokens(sqlite_store)
    assert tokens.check(text)
    assert tokens.remembered(text)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    assert tokens.remembered(text) is None
    with pytest.raises(Refused, match="expired"):
        tokens.check(text)


def test_the_same_within_a_second_is_one_entry(sqlite_store):
    noted = []
    audit = Audit(sqlite_store, lambda: noted.append(1))
    for _ in range(5):
        audit.add("token:a", "POST /v1/records", "F/1", 200, "127.0.0.1")
    audit.add("token:a", "POST /v1/records", "F/2", 200, "127.0.0.1")
    audit.flush()
    audit.flush()
    entries = [entry for _, entry in sqlite_store.audited()]
    assert sorted((entry["what"], entry.get("count", 1)) for entry in entries) == [("F/1", 5), ("F/2", 1)]
    assert len(noted) == 2
    audit.close()


def test_entries_wait_for_a_database_that_is_away(tmp_path):
    store = open_store(str(tmp_path / "database"))
    audit = Audit(store, store.ping)
    audit.add("token:a", "DELETE /x", "F/1", 204, "127.0.0.1")
    store.close()
    with pytest.raises(StoreError):
        store.audit([{}])
    audit.flush()
    audit.add("token:a", "DELETE /x", "F/1", 204, "127.0.0.1")
    audit.flush()
    assert [entry.get("count") for entry in audit._waiting.values()] == [2]
