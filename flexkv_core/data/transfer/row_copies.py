"""Copies rows between device and pinned memory: in one call if CUDA has it, else one by one.

Tested with a stand-in for the CUDA runtime, and against the signatures of cuda-bindings 12.9 and
13.5: it has not run on a GPU yet.
"""

from collections.abc import Callable
from typing import Any

import torch

from flexkv_core.data.transfer.device import Ids
from flexkv_core.errors import TierError

__all__ = ["BatchedCopy", "RowCopy", "copy_one_by_one", "find_row_copy"]

RowCopy = Callable[[torch.Tensor, Ids, torch.Tensor, Ids, torch.cuda.Stream], None]
"""Called with (target, target_ids, source, source_ids, stream): queues copies of rows on `stream`,
`source_ids[i]` to `target_ids[i]`.

Both sides are `[rows, row_bytes]` uint8, contiguous within a row: one on the GPU, one in pinned
memory. No target row is named twice. Thread: any.
"""

_FIRST_VERSION = 12080
"""CUDA 12.8, which introduced the call."""


def find_row_copy() -> RowCopy:
    """Return the batched copy if cuda-bindings and the driver have it, else one by one."""
    try:
        from cuda.bindings import runtime  # noqa: PLC0415 optional, and only wanted on a GPU
    except ImportError:
        return copy_one_by_one
    _, driver = runtime.cudaDriverGetVersion()
    _, bindings = runtime.cudaRuntimeGetVersion()
    # A runtime needs a driver of its own major version.
    if min(driver, bindings) < _FIRST_VERSION or driver < bindings // 1000 * 1000:
        return copy_one_by_one
    return BatchedCopy(runtime)


def copy_one_by_one(
    target: torch.Tensor,
    target_ids: Ids,
    source: torch.Tensor,
    source_ids: Ids,
    stream: torch.cuda.Stream,
) -> None:
    """Queue one copy per row: a `RowCopy`."""
    with torch.cuda.stream(stream):
        for to_id, from_id in zip(target_ids.tolist(), source_ids.tolist(), strict=True):
            target[to_id].copy_(source[from_id], non_blocking=True)


class BatchedCopy:
    """Queues all rows by one `cudaMemcpyBatchAsync`: a `RowCopy`."""

    def __init__(self, runtime: Any) -> None:  # noqa: ANN401 a module that may not be installed
        """Use `runtime`, which is `cuda.bindings.runtime`."""
        self._runtime = runtime
        self._attributes = runtime.cudaMemcpyAttributes()
        # Work queued earlier may still write a source, so it is read in the stream's order.
        order = runtime.cudaMemcpySrcAccessOrder.cudaMemcpySrcAccessOrderStream
        self._attributes.srcAccessOrder = order

    def __call__(
        self,
        target: torch.Tensor,
        target_ids: Ids,
        source: torch.Tensor,
        source_ids: Ids,
        stream: torch.cuda.Stream,
    ) -> None:
        """Queue the copies.

        Args:
            target: See `RowCopy`.
            target_ids: The same.
            source: The same.
            source_ids: The same.
            stream: Not the legacy default stream, which the call does not accept.

        Raises:
            TierError: CUDA refuses the batch.
        """
        if not len(target_ids):
            return
        addresses = _addresses(target, target_ids), _addresses(source, source_ids)
        sizes = [target.shape[1]] * len(target_ids)
        # One set of attributes, from copy 0 on. CUDA 12 also returns which copy failed.
        code, *_ = self._runtime.cudaMemcpyBatchAsync(
            *addresses, sizes, len(sizes), [self._attributes], [0], 1, stream.cuda_stream
        )
        if int(code):
            msg = f"cudaMemcpyBatchAsync refused {len(sizes)} copies of {sizes[0]} bytes: {code!r}"
            raise TierError("host", msg)


def _addresses(rows: torch.Tensor, ids: Ids) -> list[int]:
    addresses: list[int] = (rows.data_ptr() + ids * rows.stride(0)).tolist()
    return addresses
