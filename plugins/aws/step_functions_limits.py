"""The quotas of AWS Step Functions and EventBridge, as far as a state machine can come to them.

From "Step Functions service quotas" (AWS Step Functions Developer Guide), "Amazon EventBridge quotas" and "Quotas for
Amazon EventBridge Scheduler".
"""

from __future__ import annotations

MAX_NAME = 80
"""Characters of the name of a state machine or an execution."""
MAX_STATE_NAME = 80
MAX_SCHEDULE_NAME = MAX_RULE_NAME = 64
MAX_DEFINITION = 1024 * 1024
"""Bytes of a definition."""
MAX_HISTORY = 25_000
"""Events of one execution; each child of a distributed Map is an execution of its own."""
MAX_PAYLOAD = 256 * 1024
"""Bytes of the state, and of what a Map collects of its children: two bytes of each."""
MAX_CHILDREN = MAX_PAYLOAD // 2
MAX_CONCURRENCY = 10_000
"""Children of a distributed Map at once."""
MAX_INLINE_CONCURRENCY = 40
INLINE_CHILDREN = 40
"""Up to how many children a Map is inline."""
INLINE_EVENTS = 8_000
"""What all inline Maps of an execution may add to the history."""
EVENTS = {"Task": 6, "Parallel": 4, "Map": 4, "Pass": 2, "Choice": 2, "Wait": 2, "Succeed": 2, "Fail": 1}
"""Events of one passage through a state, without what is within it."""
LOOP_TURNS = 400
"""Turns of a loop that are states of the machine."""
TURN_EVENTS = 20
"""What a turn adds to the history."""
FEWEST_TURNS = 10
LOOP_EVENTS = 8_000
"""What all loops of an execution may add to it."""
MAX_DELAY = 31_622_399
"""Seconds between two attempts."""
GANG_POLLS = (15, 300)
"""Seconds until a gang is looked at for the first time, and at most."""
MAX_OVERRIDES = 8192
"""Characters of what a state overrides of a job (`flowkit.plugins.aws.batch_jobs`)."""
