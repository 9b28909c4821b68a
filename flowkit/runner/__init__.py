"""Running flows from Python code: scripts, tests, notebooks."""
