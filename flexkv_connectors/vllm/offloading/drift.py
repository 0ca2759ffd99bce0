"""What differs between the offloading of vLLM 0.28 and 0.33."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from vllm.v1.kv_offload.config import OffloadingConfig
from vllm.v1.kv_offload.tiering.base import JobResult

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_offload.base import OffloadKey, ReqContext
    from vllm.v1.kv_offload.tiering.base import TransferJob

__all__ = ["end_of", "make_result", "rows_of", "tails_of", "why_rows_end"]

_SAYS_ORDER = "kv_cache_layout" in OffloadingConfig.__dataclass_fields__
_HAS_BYTES = "transfer_bytes" in JobResult.__dataclass_fields__


def why_rows_end() -> str | None:
    """Name what makes rows mean nothing to later processes, if anything does.

    vLLM 0.28 does not say in which order KV lies in a row, and other connectors beside this one
    change it; nor do its keys mean the same in each process.
    """
    if _SAYS_ORDER:
        return None
    return "vLLM 0.28 does not say how KV lies in its host memory: upgrade vLLM"


def tails_of(output: "SchedulerOutput") -> dict[str, Any]:
    """Return what vLLM keeps of running requests between blocks, by request.

    On 0.28 it lies in the output itself.
    """
    state = getattr(output, "kv_connector_block_state", None)
    tails: dict[str, Any] | None = getattr(state, "boundary_state_offloads", None)
    if tails is None:
        tails = getattr(output, "partial_tail_offloads", None)
    return {} if tails is None else tails


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
