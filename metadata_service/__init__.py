"""The metadata service (imported as ``flowkit.metadata_service``)."""
