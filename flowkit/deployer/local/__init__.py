"""The scheduler in the box: when deployed flows are due, and the processes that run them."""
