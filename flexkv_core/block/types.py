"""Types of the ids that cross module boundaries. A leaf: it imports nothing of ours."""

from typing import NewType

__all__ = ["BlockKey", "JobId", "RequestId", "SlotId"]

BlockKey = NewType("BlockKey", bytes)
"""32 bytes: the chained SHA-256 of all tokens up to the end of a block (see `keys`)."""

SlotId = NewType("SlotId", int)
"""Index of a block-sized slot in the host tier; the same on every rank."""

JobId = NewType("JobId", int)
"""Number of one `TransferPlan`, unique within a manager, never 0."""

RequestId = NewType("RequestId", str)
"""The engine's own name for a request."""
