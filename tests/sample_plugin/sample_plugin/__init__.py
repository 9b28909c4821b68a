"""A package that adds to flowkit, as a stranger would write one."""
