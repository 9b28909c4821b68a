"""Third-party systems: cloud storages, executors and deployers (imported as ``flowkit.plugins``)."""
