"""flowkit: run flows on the laptop and in the cloud, keep every artifact, resume what failed."""
