"""Resume the newest run that failed, here: python flow.py resume --origin-run-id <its id>."""

from flowkit import Flow, Runner, namespace

namespace(None)  # deployed runs are in a namespace of their own
failed = next(run for run in Flow("NightlyFlow") if run.status == "failed")
print(f"python flow.py resume --origin-run-id {failed.id}")
Runner("flow.py").resume(origin_run_id=failed.id)
