"""AWS on this machine, to try things out: S3 and Batch by moto, and a runner that executes Batch's jobs as processes.

    python stack.py start                 start it in the background
    python stack.py run PROGRAM …         run a Python program with the variables that lead to it
    python stack.py stop                  stop it; everything that it kept is gone

It needs no account. It listens on 127.0.0.1 only, takes any credentials, and ends by itself after two hours.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
STATE = os.path.join(HERE, ".stack.json")
LOG = os.path.join(HERE, ".stack.log")
QUEUE = "tutorial"
LIFETIME = 2 * 3600
ACCOUNT, REGION = "123456789012", "us-east-1"


# -- what you call ----------------------------------------------------------------------------------------------------


def start():
    if running():
        return f"It runs already, at {running()['url']}."
    try:
        import boto3  # noqa: F401
        import moto.server  # noqa: F401
    except ImportError as error:
        sys.exit(f"The stack needs {error.name}: pip install 'flowkit[aws]' 'moto[s3,batch,server]'")
    with open(LOG, "w") as log:
        server = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "serve"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    while not running():
        if server.poll() is not None:
            sys.exit(f"It did not start; see {LOG}")
        time.sleep(0.1)
    return f"S3 and Batch are at {running()['url']}; python stack.py run … leads there, python stack.py stop ends it."


def run(*command):
    state = running()
    if not state:
        sys.exit("It does not run: python stack.py start")
    return subprocess.call([sys.executable, *command], env={**os.environ, **variables(state)})


def stop():
    state = running()
    if not state:
        return "It does not run."
    os.kill(state["pid"], signal.SIGTERM)
    while os.path.exists(STATE):
        time.sleep(0.05)
    return "Stopped."


def running():
    """Return what the running stack says of itself; None where there is none."""
    try:
        with open(STATE) as file:
            state = json.load(file)
        os.kill(state["pid"], 0)
    except (OSError, ValueError):
        return None
    return state


def variables(state):
    """Return what a user of AWS has in the environment, and what flowkit needs to know."""
    return {
        "AWS_ENDPOINT_URL": state["url"],
        "AWS_ACCESS_KEY_ID": "tutorial",
        "AWS_SECRET_ACCESS_KEY": "tutorial",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "FLOWKIT_DATASTORE": f"s3://{state['bucket']}/flows",
        "FLOWKIT_BATCH_QUEUE": QUEUE,
        # The "containers" are processes of this Python, which has everything.
        "FLOWKIT_SKIP_INSTALL": "true",
    }


# -- what runs in the background --------------------------------------------------------------------------------------


def serve():
    from moto.batch import models
    from moto.server import ThreadedMotoServer

    models.Job.start = lambda job: None  # it would start a thread and a Docker container for each job
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    state = {"pid": os.getpid(), "url": f"http://{host}:{port}", "bucket": f"tutorial-{os.urandom(4).hex()}"}
    prepare(state)
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    with open(STATE + ".new", "w") as file:
        json.dump(state, file)
    os.replace(STATE + ".new", STATE)
    runner = Runner(models.batch_backends[ACCOUNT][REGION])
    try:
        end = time.monotonic() + LIFETIME
        while not over.wait(0.05) and time.monotonic() < end:
            runner.look()
    finally:
        runner.end()
        os.unlink(STATE)
        server.stop()


def prepare(state):
    """Make what docs/batch.md tells people to make: a bucket, a compute environment and a queue."""
    import boto3

    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": REGION, "endpoint_url": state["url"]}
    s3, iam, ec2, batch = (boto3.client(name, **keys) for name in ("s3", "iam", "ec2", "batch"))
    s3.create_bucket(Bucket=state["bucket"])
    role = iam.create_role(RoleName="batch", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    iam.create_instance_profile(InstanceProfileName="instances")
    machines = {
        "type": "EC2",
        "minvCpus": 0,
        "maxvCpus": 64,
        "instanceTypes": ["m5.4xlarge"],
        "instanceRole": "instances",
        "subnets": [ec2.describe_subnets()["Subnets"][0]["SubnetId"]],
        "securityGroupIds": [ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]],
    }
    batch.create_compute_environment(
        computeEnvironmentName=QUEUE, type="MANAGED", state="ENABLED", serviceRole=role, computeResources=machines
    )
    order = [{"order": 1, "computeEnvironment": QUEUE}]
    batch.create_job_queue(jobQueueName=QUEUE, state="ENABLED", priority=1, computeEnvironmentOrder=order)


class Runner:
    """Executes moto's Batch jobs as processes, as many at once as this machine has processors."""

    def __init__(self, batch):
        self.batch = batch
        self.processes = {}
        self.folder = tempfile.TemporaryDirectory(prefix="stack-")

    def look(self):
        """Go one round over all jobs."""
        for name, job in list(self.batch._jobs.items()):
            if job.job_stopped:
                continue
            if job._child_jobs:
                self.look_at_array(job)
            elif name in self.processes:
                self.look_at_process(name, job)
            elif job.stop:
                job._mark_stopped(success=False)
            elif len(self.processes) < (os.cpu_count() or 2):
                self.start(name, job)
            else:
                job.status = "RUNNABLE"

    def start(self, name, job):
        command = list(job._get_container_property("command", []))
        given = {pair["name"]: pair["value"] for pair in job._get_container_property("environment", [])}
        folder = tempfile.mkdtemp(dir=self.folder.name)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": folder,
            "TMPDIR": folder,
            # On AWS these come from the job's role.
            "AWS_ACCESS_KEY_ID": "of-the-role",
            "AWS_SECRET_ACCESS_KEY": "of-the-role",
            **given,
            "AWS_BATCH_JOB_ID": name,
            "AWS_BATCH_JQ_NAME": QUEUE,
        }
        if ":" in name:  # a child of an array
            environment["AWS_BATCH_JOB_ARRAY_INDEX"] = name.rpartition(":")[2]
        if command[0] == "python":
            command[0] = sys.executable
        self.processes[name] = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, start_new_session=True
        )
        job.status = "RUNNING"

    def look_at_process(self, name, job):
        process = self.processes[name]
        if job.stop and process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        if process.poll() is not None:
            del self.processes[name]
            job.exit_code = process.returncode
            job.job_stopped_reason = job.job_stopped_reason or "Essential container in task exited"
            job._mark_stopped(success=process.returncode == 0)

    def look_at_array(self, job):
        for child in job._child_jobs:
            child.stop = child.stop or job.stop
        if all(child.job_stopped for child in job._child_jobs):
            job._mark_stopped(success=all(child.status == "SUCCEEDED" for child in job._child_jobs))

    def end(self):
        """End what still runs."""
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.folder.cleanup()


if __name__ == "__main__":
    calls = {"start": start, "run": run, "stop": stop, "serve": serve}
    if len(sys.argv) < 2 or sys.argv[1] not in calls:
        sys.exit(__doc__)
    outcome = calls[sys.argv[1]](*sys.argv[2:])
    sys.exit(outcome if isinstance(outcome, int) else print(outcome))
