"""``flowkit service``: how it starts, what it refuses to do, and how it ends."""

from __future__ import annotations

import datetime
import json
import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import requests
from service_process import DEADLINE, ServiceProcess

from flowkit.cli.console_script import execute
from flowkit.exceptions import StoreError
from flowkit.metadata.service import ServiceMetadata
from flowkit.metadata.service_calls import Stranger


def test_a_newcomer_starts_it_and_stops_it(tmp_path):
    with ServiceProcess(tmp_path, "--database", "~/.flowkit/service") as service:
        assert "Ctrl-C stops it" in service.stderr
        assert f"FLOWKIT_METADATA=service FLOWKIT_SERVICE_URL={service.url}" in service.stderr
        about = requests.get(f"{service.url}/v1/about", timeout=DEADLINE).json()
        assert about["service"] == "flowkit"
        assert about["heartbeat_interval"] == 10
        assert (tmp_path / ".flowkit" / "service").is_dir()
        assert service.stop() == 0
        assert service.stderr.endswith("Stopped.\n")
        assert "Traceback" not in service.stderr


def test_the_database_is_at_home_if_nobody_says_otherwise(workspace):
    assert workspace.flowkit("service", "migrate", "--check", check=5).stderr.startswith(
        str(workspace.home / ".flowkit" / "service")
    )
    assert "up to date now" in workspace.flowkit("service", "migrate", check=True).stderr
    assert "is up to date" in workspace.flowkit("service", "migrate", "--check", check=True).stderr
    assert list((workspace.home / ".flowkit").iterdir()) == [workspace.home / ".flowkit" / "service"]


def test_the_statements_of_a_migration_make_the_database(workspace):
    printed = workspace.flowkit("service", "migrate", "--sql", check=True).stdout
    with sqlite3.connect(":memory:") as database:
        database.executescript(printed)
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (0,)
    database.close()
    assert not (workspace.home / ".flowkit").exists()


def test_a_database_that_is_newer_is_refused(workspace):
    workspace.flowkit("service", "migrate", "--database", "db", check=True)
    with sqlite3.connect(workspace.path / "db" / "service.db") as database:
        database.execute("UPDATE facts SET value = '999'")
    database.close()
    for command in (["migrate"], ["start", "--port", "0"]):
        told = workspace.flowkit("service", *command, "--database", "db", check=5).stderr
        assert "newer flowkit" in told
        assert "Traceback" not in told


def test_options_can_be_variables(tmp_path):
    env = {
        "FLOWKIT_SERVICE_DATABASE": str(tmp_path / "elsewhere"),
        "FLOWKIT_SERVICE_HEARTBEAT_INTERVAL": "3",
        "FLOWKIT_SERVICE_NO_ACCESS_LOG": "1",
    }
    with ServiceProcess(tmp_path, env=env) as service:
        assert requests.get(f"{service.url}/v1/about", timeout=DEADLINE).json()["heartbeat_interval"] == 3
        assert service.stop() == 0
        assert service.log == []
    assert (tmp_path / "elsewhere").is_dir()


def test_each_request_is_a_line_of_json_without_secrets(tmp_path):
    with ServiceProcess(tmp_path) as service:
        requests.get(
            f"{service.url}/v1/runs?user=hush-query", headers={"Authorization": "Bearer hush-token"}, timeout=DEADLINE
        )
        requests.get(f"{service.url}/nothing/%0a%1b[31m", timeout=DEADLINE)
        assert service.stop() == 0
        first, second = (line for line in service.log if "path" in line)
        assert "hush" not in service.stderr
    assert {"time", "level", "method", "path", "status", "milliseconds", "bytes", "caller", "address"} == first.keys()
    assert (first["method"], first["path"], first["address"]) == ("GET", "/v1/runs", "127.0.0.1")
    assert (second["path"], second["status"]) == ("/nothing/\n\x1b[31m", 400)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_an_open_request_is_finished_before_it_stops(tmp_path, how):
    with ServiceProcess(tmp_path) as service:
        host, _, port = service.url.removeprefix("http://").partition(":")
        body = json.dumps({"at_least": 5}).encode()
        with socket.create_connection((host, int(port)), timeout=DEADLINE) as connection:
            connection.sendall(
                b"POST /v1/flows/Slow/reserve HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body[:3])
            )
            # answered by the same loop, so what was sent before has arrived
            requests.get(f"{service.url}/v1/about", timeout=DEADLINE)
            service.process.send_signal(how)
            _wait_until_refused(host, int(port))
            connection.sendall(body[3:])
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")
        assert service.wait() == 0


def test_open_streams_and_idle_connections_do_not_hold_it_up(tmp_path):
    with ServiceProcess(tmp_path) as service, requests.Session() as session:
        session.get(f"{service.url}/v1/about", timeout=DEADLINE)
        with requests.get(f"{service.url}/v1/events", stream=True, timeout=DEADLINE) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith(b"retry:")
            assert service.stop() == 0
            assert any(b"stopping" in line for line in lines)
    assert "Cancel" not in service.stderr


def test_a_second_signal_does_not_wait(tmp_path):
    with ServiceProcess(tmp_path) as service:
        host, _, port = service.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE) as connection:
            connection.sendall(b"POST /v1/records HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
            requests.get(f"{service.url}/v1/about", timeout=DEADLINE)
            service.process.send_signal(signal.SIGTERM)
            _wait_until_refused(host, int(port))
            assert service.stop() == 0
        assert "timeout graceful shutdown exceeded" not in service.stderr


def test_others_are_served_only_if_they_are_asked_who_they_are(workspace):
    told = workspace.flowkit("service", "--host", "0.0.0.0", "--port", "0", check=2).stderr
    assert "nothing asks them who they are" in told
    assert "--authentication" in told
    assert "--insecure" in told


def test_it_serves_others_if_it_is_told_so(tmp_path):
    with ServiceProcess(tmp_path, "--host", "0.0.0.0", "--insecure") as service:
        assert "serves everybody" in service.stderr
        local = service.url.replace("0.0.0.0", "127.0.0.1")
        assert requests.get(f"{local}/v1/about", timeout=DEADLINE).status_code == 200
    with ServiceProcess(tmp_path, "--host", "0.0.0.0", "--authentication") as service:
        assert "unencrypted" in service.stderr
        local = service.url.replace("0.0.0.0", "127.0.0.1")
        answer = requests.get(f"{local}/v1/about", timeout=DEADLINE)
        assert answer.status_code == 401
        assert answer.json().keys() == {"error", "hint"}


def test_a_port_that_is_taken(workspace):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = workspace.flowkit("service", "--port", port, check=6).stderr
    assert told.startswith(f"port {port} is in use")
    assert not (workspace.home / ".flowkit").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--host", "192.0.2.1", "--insecure"], 2, "no address of this machine"),
        (["--host", "no such host", "--insecure"], 2, "no address to listen on"),
        (["--port", "99999"], 2, "--port"),
        (["--database", "mysql://me:hush@db/x"], 2, "kind 'mysql'"),
        (["--database", "file.txt/below"], 5, "file.txt"),
        (["--database", "postgresql://me:hush@127.0.0.1:1/x"], 5, "PostgreSQL"),
        (["--database", "a", "--database-file", "b"], 2, "name two databases"),
        (["--database-file", "missing"], 2, "the file missing"),
        (["--database-file", "file.txt"], 2, "the file file.txt does not hold"),
        (["--tls-key", "x"], 2, "without --tls-certificate"),
        (["--tls-certificate", "missing.pem", "--tls-key", "missing.pem"], 2, "certificate missing.pem"),
        (["--tls-certificate", "file.txt", "--tls-key", "file.txt"], 2, "cannot be used"),
        (["--oidc-issuer", "https://issuer.example.com"], 2, "--oidc-audience"),
        (["--pool", "0"], 2, "--pool"),
        (["--allow-host", "https://runs.example.com"], 2, "is no name of a host"),
        (["--allow-host", "run*.example.com"], 2, "is no name of a host"),
        (["--allow-origin", "pages.example.com"], 2, "is no origin of pages"),
        (["--prot", "1"], 2, "did you mean '--port'?"),
        (["strat"], 2, "did you mean 'start'?"),
    ],
)
def test_what_cannot_be_is_one_message(workspace, capsys, arguments, code, told):
    workspace.write("file.txt", "no certificate\n")
    workspace.client()  # its folder and its environment; the command itself runs here, since there are many
    port = ["--port", "0"] if "--port" not in arguments and arguments != ["strat"] else []  # never one of others
    assert execute(["service", *arguments, *port]) == code
    shown = capsys.readouterr().err
    assert told in shown
    assert "Traceback" not in shown
    assert "hush" not in shown
    assert len(shown.splitlines()) <= 4


def test_a_password_in_the_arguments_is_remarked_upon(workspace):
    start = ["service", "--port", "0"]
    told = workspace.flowkit(*start, "--database", "postgresql://me:hush@127.0.0.1:1/x", check=5).stderr
    assert "FLOWKIT_SERVICE_DATABASE" in told
    hidden = {"FLOWKIT_SERVICE_DATABASE": "postgresql://me:hush@127.0.0.1:1/x"}
    assert "FLOWKIT_SERVICE_DATABASE" not in workspace.flowkit(*start, env=hidden, check=5).stderr
    workspace.write("url", "postgresql://me:hush@127.0.0.1:1/x\n")
    assert "hush" not in workspace.flowkit(*start, "--database-file", "url", check=5).stderr


def test_a_missing_package_says_what_to_install(workspace):
    workspace.write("site/sitecustomize.py", "import sys; sys.modules['fastapi'] = None")
    told = workspace.flowkit("service", env={"PYTHONPATH": str(workspace.path / "site")}, check=2).stderr
    assert "pip install 'flowkit[service]'" in told


def test_tls(tmp_path, monkeypatch):
    certificate, key = _certificate(tmp_path)
    with ServiceProcess(tmp_path, "--tls-certificate", certificate, "--tls-key", key) as service:
        assert service.url.startswith("https://127.0.0.1:")
        assert requests.get(f"{service.url}/v1/about", verify=str(certificate), timeout=DEADLINE).ok
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(f"{service.url}/v1/about", timeout=DEADLINE)
        ours = ServiceMetadata(service.url)
        with pytest.raises(Stranger, match="no certificate that is trusted"):
            ours.flows()
        ours.close()
        for bundle, outcome in ((certificate, nullcontext()), (tmp_path / "no", pytest.raises(StoreError, match="no"))):
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
            ours = ServiceMetadata(service.url)
            with outcome:
                assert ours.flows() == []
            ours.close()
        assert service.stop() == 0


def test_the_module_is_the_command(tmp_path):
    shown = subprocess.run(
        [sys.executable, "-m", "flowkit.metadata_service", "start", "--help"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        cwd=tmp_path,  # not a checkout, where the folder flowkit/ would be found first
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert shown.returncode == 0, shown.stderr
    assert "--database" in shown.stdout


def _wait_until_refused(host: str, port: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=DEADLINE).close()
        except OSError:
            return
        time.sleep(0.01)
    raise AssertionError("it takes connections still")


def _certificate(folder):
    """Make a certificate of 127.0.0.1 for itself."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(*paths)
    return paths


def test_a_caller_that_goes_away_is_no_defect_of_the_service(tmp_path):
    with ServiceProcess(tmp_path).wait_ready() as service:
        host, port = service.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE) as caller:
            head = "POST /v1/heartbeats HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            caller.sendall(f"{head}Content-Length: 20\r\n\r\n{{".encode())
        deadline = time.monotonic() + DEADLINE
        while not (lines := [line for line in service.log if line.get("path") == "/v1/heartbeats"]):
            assert time.monotonic() < deadline, service.stderr
            time.sleep(0.01)
        assert [line["status"] for line in lines] == [499]
