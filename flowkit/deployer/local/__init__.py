"""The scheduler in the box: it starts deployed flows when they are due, as runs of a client on this machine."""
