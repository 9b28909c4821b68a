"""Flows that run unattended: what is deployed, the port to the schedulers that run it, and the API over both."""
