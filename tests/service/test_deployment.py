"""The files by which the service is put into containers say what their readers understand, and hold no secret."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from flowkit.cli.console import Console
from flowkit.cli.service import start_command

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy" / "service"
INSTRUCTIONS = {
    *("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "STOPSIGNAL", "USER"),
    *("VOLUME", "WORKDIR"),
}
MODE = re.compile(r"\bdefaultMode: (0\d+)\b")


@pytest.fixture(scope="module")
def variables() -> set[str]:
    """Every variable that the service reads."""
    params = start_command(Console()).params
    return {str(param.envvar) for param in params if isinstance(param, click.Option)}


def _instructions(path: Path) -> list[tuple[str, str]]:
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def _copied() -> list[str]:
    found = []
    for word, rest in _instructions(DEPLOY / "Dockerfile"):
        if word == "COPY" and not rest.startswith("--from"):
            found += rest.split()[:-1]
    return found


def test_the_image_is_built_from_what_is_there(variables):
    told = _instructions(DEPLOY / "Dockerfile")
    assert {word for word, _ in told} <= INSTRUCTIONS
    assert told[0][0] == "ARG"
    assert [word for word, _ in told].count("FROM") == 2
    for source in _copied():
        assert (ROOT / source).exists(), source
    packaged = re.findall(r"^    flowkit\S* = (\w+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert {*packaged, "setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= set(_copied())
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(_copied())

    last = dict(told[max(place for place, (word, _) in enumerate(told) if word == "FROM") :])
    assert last["USER"] == "10001:10001"
    assert json.loads(last["ENTRYPOINT"]) == ["flowkit", "service"]
    assert json.loads(last["CMD"]) == ["start"]
    probe = json.loads(last["HEALTHCHECK"].partition("CMD ")[2])
    assert probe[:2] == ["python", "-c"]
    ast.parse(probe[2])
    named = set(re.findall(r"FLOWKIT_\w+(?==)", last["ENV"]))
    assert named
    assert named <= variables


def test_the_compose_file_runs_the_service_on_postgresql(variables):
    text = (DEPLOY / "compose.yaml").read_text()
    document: dict[str, Any] = yaml.safe_load(text)
    services = document["services"]
    assert set(document) == {"name", "services", "volumes"}
    assert set(services) == {"service", "postgres"}
    service, database = services["service"], services["postgres"]
    assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert service["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert {volume.partition(":")[0] for volume in database["volumes"]} == set(document["volumes"])
    for each in services.values():
        assert each["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
        assert each["restart"] == "unless-stopped"
    ast.parse(service["healthcheck"]["test"][3])
    assert {name for name in service["environment"] if name.startswith("FLOWKIT_")} <= variables
    # For this machine only, until somebody says otherwise.
    assert service["ports"] == ["${SERVICE_ADDRESS:-127.0.0.1}:${SERVICE_PORT:-8080}:8080"]
    # Secrets come from a file that is not here, and its template has none.
    for value in (service["environment"]["PGPASSWORD"], database["environment"]["POSTGRES_PASSWORD"]):
        assert value.startswith("${POSTGRES_PASSWORD:?")
    template = dict(
        line.split("=", 1)
        for line in (DEPLOY / "env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert template["POSTGRES_PASSWORD"] == ""
    assert set(re.findall(r"\$\{(\w+)", text)) == set(template)


def test_the_manifests_are_valid_and_fit_together(variables):
    text = (DEPLOY / "kubernetes.yaml").read_text()
    # YAML 1.1, which Kubernetes reads, knows octal numbers by their zero; so does PyYAML.
    assert MODE.findall(text) == ["0440"]
    found = {document["kind"]: document for document in yaml.safe_load_all(text)}
    assert set(found) == {"ServiceAccount", "Deployment", "Service", "PodDisruptionBudget"}
    for document in found.values():
        kubernetes_validate.validate(document, "1.31", strict=True)
    template = found["Deployment"]["spec"]["template"]
    labels, pod = template["metadata"]["labels"], template["spec"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert pod["serviceAccountName"] == found["ServiceAccount"]["metadata"]["name"]
    (container,) = pod["containers"]
    (port,) = container["ports"]
    assert found["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    assert [probes[kind]["path"] for kind in probes] == ["/ping", "/healthcheck", "/ping"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    # The database's URL comes from a Secret, as a file, and no variable holds one.
    env = {each["name"]: each["value"] for each in container["env"]}
    assert set(env) <= variables
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "database"]
    assert env["FLOWKIT_SERVICE_DATABASE_FILE"] == f"{mount['mountPath']}/url"
    (secret,) = [each["secret"] for each in pod["volumes"] if "secret" in each]
    assert f"secret generic {secret['secretName']} --from-file=url=" in text


def test_the_page_for_operators_names_every_option(variables):
    page = (ROOT / "docs" / "service.md").read_text()
    assert (
        set(re.findall(r"`(FLOWKIT_SERVICE_\w+)`", page)) - {"FLOWKIT_SERVICE_TOKEN", "FLOWKIT_SERVICE_URL"}
        == variables
    )
    for name in re.findall(r"`(deploy/\S+|[\w.]+\.(?:yaml|example))`", page):
        assert (ROOT / name).exists() or (DEPLOY / name).exists(), name
    for name in re.findall(r"\]\(([\w.]+\.md)\)", page):
        assert (ROOT / "docs" / name).is_file(), name
