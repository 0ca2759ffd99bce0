"""What differs between the offloading of vLLM 0.28 and 0.33."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import vllm
from vllm.v1.kv_offload.tiering.base import JobResult

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadKey, ReqContext
    from vllm.v1.kv_offload.tiering.base import TransferJob

__all__ = ["end_of", "make_result", "rows_of", "why_not_version"]

_FIRST = (0, 31)
_HAS_BYTES = "transfer_bytes" in JobResult.__dataclass_fields__


def why_not_version() -> str | None:
    """Name a vLLM whose offloading we were never held against, if this is one."""
    if vllm.__version_tuple__[:2] >= _FIRST:
        return None
    first = ".".join(map(str, _FIRST))
    return f"FlexKV below vLLM's offloading needs vLLM {first} or newer, and this is an older one"


def rows_of(job: "TransferJob") -> Sequence[int]:
    """Return the rows of a job; before 0.30 they were called blocks."""
    rows = getattr(job, "chunk_ids", None)
    return [int(row) for row in (getattr(job, "block_ids", ()) if rows is None else rows)]


def make_result(
    job: "TransferJob", good_keys: "Collection[OffloadKey]", row_bytes: int
) -> JobResult:
    """Return how a job ended; before 0.31 vLLM did not ask how many bytes were moved."""
    moved = {"transfer_bytes": len(good_keys) * row_bytes} if _HAS_BYTES else {}
    return JobResult(
        job_id=job.job_id,
        success=len(good_keys) == len(job.keys),
        successful_keys=good_keys,
        **moved,
    )


def end_of(key: "OffloadKey", req_context: "ReqContext") -> int | None:
    """Return where in its request a block ends, in tokens; None if vLLM does not say."""
    ask = getattr(req_context, "get_offload_key_position", None)
    end: int | None = None if ask is None else ask(key)
    return end
