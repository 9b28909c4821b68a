"""Secrets of AWS Secrets Manager, from moto over HTTP."""

from __future__ import annotations

import base64
import json

import pytest

from flowkit import registry
from flowkit.exceptions import TaskError
from flowkit.plugins.aws import session
from flowkit.plugins.aws.secrets_manager import SecretsManager, variable_name

VALUE = "never-to-be-seen"


@pytest.fixture
def secret(aws):
    """Makes a secret and returns its ARN."""
    client = aws.client("secretsmanager")
    made = []

    def make(name: str, **content) -> str:
        made.append(name)
        return client.create_secret(Name=name, **content)["ARN"]

    yield make
    for name in made:
        client.delete_secret(SecretId=name, ForceDeleteWithoutRecovery=True)


def fetch(identity: str, role: str | None = None, **options) -> dict[str, str]:
    backend = SecretsManager()
    assert backend.check(identity, options) == []
    return dict(backend.fetch(identity, options, role))


def test_it_is_what_the_registry_names() -> None:
    assert registry.load("secrets", "aws-secrets-manager") is SecretsManager


def test_a_json_object_gives_a_variable_for_each_key(secret) -> None:
    arn = secret("prod/db", SecretString=json.dumps({"USER": "jo", "PORT": 5432, "OPTIONS": {"a": [1]}}))
    whole = {"USER": "jo", "PORT": "5432", "OPTIONS": '{"a": [1]}'}
    assert fetch("prod/db") == fetch(arn) == whole
    assert fetch("prod/db", keys=["PORT"]) == {"PORT": "5432"}
    assert fetch("prod/db", keys={"USER": "DB_USER"}, prefix="X_") == {"X_DB_USER": "jo"}
    assert list(fetch("prod/db", json=False)) == ["prod_db"]
    assert json.loads(fetch("prod/db", env_var_name="DB")["DB"])["USER"] == "jo"
    with pytest.raises(TaskError, match="no key 'HOST'") as raised:
        fetch("prod/db", keys=["HOST"])
    assert "5432" not in str(raised.value)


def test_a_text_and_binary_content_give_one_variable(secret) -> None:
    arn = secret("prod/api-key", SecretString=VALUE)
    assert fetch("prod/api-key") == fetch(arn) == {"prod_api_key": VALUE}
    assert fetch("prod/api-key", env_var_name="KEY") == {"KEY": VALUE}
    with pytest.raises(TaskError, match="no JSON object") as raised:
        fetch("prod/api-key", keys=["a"])
    assert VALUE not in str(raised.value)
    secret("blob", SecretBinary=b"\x00\xff")
    assert base64.b64decode(fetch("blob")["blob"]) == b"\x00\xff"


def test_stages_versions_and_roles(secret, aws) -> None:
    secret("turned", SecretString="old")
    aws.client("secretsmanager").put_secret_value(SecretId="turned", SecretString="new")
    assert fetch("turned") == {"turned": "new"}
    assert fetch("turned", stage="AWSPREVIOUS") == {"turned": "old"}
    role = "arn:aws:iam::210987654321:role/reader"
    with pytest.raises(TaskError, match="there is no secret"):  # it is of another account
        fetch("turned", role)


def test_names_of_variables(secret) -> None:
    assert variable_name("9-lives") == "_9_lives"
    assert variable_name("arn:aws:secretsmanager:us-east-1:123456789012:secret:a/b-AbCdEf") == "a_b"
    secret("odd", SecretString=json.dumps({"a b": VALUE, "FLOWKIT_USER": "x"}))
    with pytest.raises(TaskError, match="not a name") as raised:
        fetch("odd")
    assert VALUE not in str(raised.value)


def test_what_is_wrong_is_told_plainly(aws, monkeypatch) -> None:
    with pytest.raises(TaskError, match="there is no secret 'nothing' in AWS Secrets Manager"):
        fetch("nothing")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    session.forget()
    with pytest.raises(TaskError, match="no AWS credentials"):
        fetch("nothing")


@pytest.mark.parametrize(
    ("identity", "options", "word"),
    [
        ("", {}, "no id"),
        ("a", {"jsn": True}, "no option 'jsn'"),
        ("a", {"json": "yes"}, "True or False"),
        ("a", {"prefix": 1}, "must be a text"),
        ("a", {"env_var_name": "a b"}, "not a name"),
        ("a", {"keys": "a"}, "list of keys"),
    ],
)
def test_sources_are_checked_without_a_call(identity, options, word) -> None:
    (told,) = SecretsManager().check(identity, options)
    assert word in told
