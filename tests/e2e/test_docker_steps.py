"""Steps with @docker in real containers: the folder of the datastore is mounted, everything else is as elsewhere."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

FLOW = """
    import os, sys
    from flowkit import FlowSpec, current, docker, resources, retry, step

    def where():
        return "container" if sys.prefix == "/usr" else "here"

    class Fan(FlowSpec):
        @step
        def start(self):
            self.place = where()
            self.items = list(range(5))
            self.next(self.each, foreach="items")

        @retry(times=1, minutes_between_retries=0)
        @docker(memory=200)
        @step
        def each(self):
            print("item", self.input, "in a", where(), "as", os.getuid())
            if self.input == 2 and current.retry_count == 0:
                raise ValueError("made to fail once")
            self.place, self.square = where(), self.input ** 2
            self.next(self.join)

        @docker
        @step
        def join(self, inputs):
            self.squares = [task.square for task in inputs]
            self.places = [task.place for task in inputs]
            self.next(self.end)

        @step
        def end(self):
            print("squares", self.squares, "in", self.places, "and", where())

    if __name__ == "__main__":
        Fan()
"""


def containers(*options: str) -> list[str]:
    command = ["docker", "ps", "--quiet", "--filter", "label=flowkit.job", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def finished(process) -> str:
    out, err = process.communicate(timeout=60)
    return out + err


def wait_until(reached, what: str) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline, f"not reached: {what}"
        time.sleep(0.05)


def test_a_foreach_in_containers(docker) -> None:
    docker.write("flow.py", FLOW)
    done = docker.run("run", check=True)
    assert "squares [0, 1, 4, 9, 16] in ['container', 'container', 'container', 'container', 'container'] and here" in (
        done.stdout
    )
    assert f"item 4 in a container as {os.getuid()}" in done.stdout
    run = docker.client().Flow("Fan").latest_run
    assert [task["place"].data for task in run["each"]] == ["container"] * 5
    assert run["start"].task["place"].data == "here"
    assert sorted(task.current_attempt for task in run["each"]) == [0, 0, 0, 0, 1]
    assert containers("--all") == []  # they are removed once they have ended
    owners = {
        os.lstat(os.path.join(folder, name)).st_uid for folder, _, names in os.walk(docker.path) for name in names
    }
    assert owners == {os.getuid()}


def test_all_steps_by_an_option_and_a_plain_image(docker, image) -> None:
    docker.write(
        "flow.py",
        """
        import sys
        import beside
        from flowkit import FlowSpec, Parameter, step

        class Hello(FlowSpec):
            name = Parameter("name", default="world")

            @step
            def start(self):
                self.text = beside.greet(self.name)
                self.next(self.end)

            @step
            def end(self):
                print(self.text, "from", sys.prefix)

        if __name__ == "__main__":
            Hello()
        """,
    )
    docker.write("beside.py", "def greet(name):\n    return 'hello ' + name\n")
    del docker.env["FLOWKIT_CONTAINER_IMAGE"]
    done = docker.run("run", "--with", f"docker:image={image},network=host", "--name", "you", check=True)
    assert "hello you from /usr" in done.stdout


def test_failures_are_told_apart(docker) -> None:
    docker.write(
        "flow.py",
        """
        import os, time
        from flowkit import FlowSpec, catch, docker, step

        class Endings(FlowSpec):
            @step
            def start(self):
                self.fates = ["raise", "memory", "exit", "fine"]
                self.next(self.each, foreach="fates")

            @catch(var="why", print_exception=False)
            @docker(memory=64)
            @step
            def each(self):
                if self.input == "raise":
                    raise ValueError("on purpose")
                if self.input == "memory":
                    self.x = b"x" * (500 << 20)
                if self.input == "exit":
                    os._exit(7)
                self.next(self.join)

            @step
            def join(self, inputs):
                for task in inputs:
                    print("ENDED", task.input, "|", task.why and str(task.why).strip().splitlines()[-1])
                self.next(self.end)

            @step
            def end(self):
                pass

        if __name__ == "__main__":
            Endings()
        """,
    )
    done = docker.run("run", check=True)
    ended = dict(line.partition("ENDED ")[2].split(" | ") for line in done.stdout.splitlines() if "ENDED" in line)
    assert ended["raise"] == "ValueError: on purpose"
    assert "out of memory" in ended["memory"]
    assert "status 7" in ended["exit"]
    assert ended["fine"] == "None"
    assert containers("--all") == []


def test_an_image_that_does_not_exist_is_told_before_anything_starts(docker) -> None:
    docker.write("flow.py", FLOW)
    done = docker.run("run", env={"FLOWKIT_CONTAINER_IMAGE": "localhost:1/no/such-image:1"}, check=3)
    assert "the image 'localhost:1/no/such-image:1' cannot be had" in done.stderr
    assert "'each', 'join'" in done.stderr
    assert docker.run("status", "--json").stdout.count("run") <= 1


def test_without_a_daemon_it_is_told_what_to_do(docker) -> None:
    docker.write("flow.py", FLOW)
    done = docker.run("run", env={"DOCKER_HOST": "unix:///nowhere/docker.sock"}, check=3)
    assert "the Docker daemon does not answer" in done.stderr
    assert "start it" in done.stderr


SLOW = """
    import time
    from flowkit import FlowSpec, docker, step

    class Slow(FlowSpec):
        @docker
        @step
        def start(self):
            print("begun", flush=True)
            time.sleep(300)
            self.next(self.end)

        @step
        def end(self):
            pass

    if __name__ == "__main__":
        Slow()
"""


def test_a_run_that_is_stopped_stops_its_containers(docker) -> None:
    docker.write("flow.py", SLOW)
    process = docker.start("run")
    wait_until(containers, "a container runs")
    listed = docker.run("docker", "list", check=True).stdout
    assert "start" in listed
    process.send_signal(signal.SIGTERM)
    text = finished(process)
    assert process.returncode == 130, text
    assert containers() == []


def test_a_container_that_somebody_removes_is_started_again(docker) -> None:
    docker.write("flow.py", SLOW.replace("300", "6"))
    process = docker.start("run")
    wait_until(containers, "a container runs")
    (first,) = containers()
    subprocess.run(["docker", "rm", "--force", first], check=True, capture_output=True)
    text = finished(process)
    assert process.returncode == 0, text
    assert "started again" in text


def test_a_gang_of_containers(docker) -> None:
    docker.write(
        "flow.py",
        """
        import sys
        from flowkit import FlowSpec, current, docker, parallel, step

        class Gang(FlowSpec):
            @step
            def start(self):
                self.next(self.train, num_parallel=3)

            @docker
            @parallel
            @step
            def train(self):
                self.node = current.parallel.node_index, current.parallel.num_nodes, sys.prefix
                self.next(self.join)

            @step
            def join(self, inputs):
                print("nodes", [task.node for task in inputs])
                self.next(self.end)

            @step
            def end(self):
                pass

        if __name__ == "__main__":
            Gang()
        """,
    )
    done = docker.run("run", check=True)
    assert "nodes [(0, 3, '/usr'), (1, 3, '/usr'), (2, 3, '/usr')]" in done.stdout


def test_the_datastore_may_be_on_s3(docker, aws) -> None:
    docker.env.update(aws.env, FLOWKIT_DATASTORE=f"s3://{aws.bucket()}/root")
    docker.write("flow.py", FLOW.replace("@docker(memory=200)", '@docker(network="host")').replace(
        "@docker\n", '@docker(network="host")\n'))  # fmt: skip
    process = docker.start("run")
    wait_until(lambda: containers() or process.poll() is not None, "a container runs")
    seen = [json.dumps(json.loads(subprocess.run(["docker", "inspect", each], capture_output=True).stdout or "[]"))
            for each in containers()]  # fmt: skip
    text = finished(process)
    assert process.returncode == 0, text
    assert "squares [0, 1, 4, 9, 16]" in text
    assert not any(aws.env["AWS_SECRET_ACCESS_KEY"] == part for each in seen for part in each.split('"'))


class Registry:
    """A registry of one image, on 127.0.0.1: what `docker save` wrote, by digest."""

    def __init__(self, folder: Path) -> None:
        told = json.loads((folder / "manifest.json").read_text())[0]
        blobs = {name: (folder / name).read_bytes() for name in (told["Config"], *told["Layers"])}
        self._answers: dict[str, tuple[str, bytes]] = {}
        parts = []
        for name, content in blobs.items():
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            kind = "container.image.v1+json" if name == told["Config"] else "image.rootfs.diff.tar"
            parts.append({"mediaType": f"application/vnd.docker.{kind}", "size": len(content), "digest": digest})
            self._answers[f"/v2/tiny/blobs/{digest}"] = ("application/octet-stream", content)
        kind = "application/vnd.docker.distribution.manifest.v2+json"
        manifest = json.dumps({"schemaVersion": 2, "mediaType": kind, "config": parts[0], "layers": parts[1:]}).encode()
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        for reference in ("1", digest):
            self._answers[f"/v2/tiny/manifests/{reference}"] = (kind, manifest)
        self._answers["/v2/"] = ("application/json", b"{}")
        answers = self._answers

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                kind, content = answers.get(self.path, ("application/json", b""))
                self.send_response(200 if content else 404)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(content).hexdigest()}")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.image = f"127.0.0.1:{self._server.server_port}/tiny:1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_an_image_is_pulled_and_one_without_python_is_told(docker, tmp_path) -> None:
    """The image that is pulled holds one file: its containers cannot start."""
    folder = tmp_path / "image"
    folder.mkdir()
    (folder / "file").write_text("alone")
    commands = "tar -c file | docker import - flowkit-tiny:1 && docker save flowkit-tiny:1 | tar -x"
    subprocess.run(commands, shell=True, cwd=folder, check=True, capture_output=True)
    registry = Registry(folder)
    try:
        docker.write("flow.py", FLOW)
        done = docker.run("run", env={"FLOWKIT_CONTAINER_IMAGE": registry.image}, check=1)
        present = subprocess.run(["docker", "image", "inspect", registry.image], capture_output=True)
        assert present.returncode == 0
        assert '"python": executable file not found' in done.stdout + done.stderr
        assert containers("--all") == []
    finally:
        registry.close()
        subprocess.run(["docker", "rmi", "--force", registry.image, "flowkit-tiny:1"], capture_output=True)
