"""What an ended load or save adds to the metrics and to the log."""

import logging
from collections.abc import Mapping

from flexkv_core.control.job import Completion, JobKind
from flexkv_core.excerpt import clipped
from flexkv_core.metrics import Recorder

__all__ = ["record_transfer"]

logger = logging.getLogger(__name__)

_METRICS: Mapping[JobKind, tuple[str, str, str]] = {
    JobKind.GET: ("load_bytes", "load_seconds", "load_failed_blocks"),
    JobKind.PUT: ("save_bytes", "save_seconds", "save_failed_blocks"),
}


def record_transfer(completion: Completion, recorder: Recorder) -> None:
    """Count what a load or save has moved, how long it took, and what it has lost."""
    moved, took, lost = _METRICS[completion.kind]
    recorder.add(moved, completion.num_bytes)
    recorder.add(took, completion.seconds)
    recorder.add(lost, completion.num_lost)
    if completion.num_lost:
        logger.warning(
            "transfer.failed kind=%s request=%s blocks=%d status=%s",
            completion.kind.value,
            clipped(completion.request_id),
            completion.num_lost,
            completion.status.name,
        )
