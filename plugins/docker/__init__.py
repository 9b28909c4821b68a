"""Docker: steps in containers on this machine."""
