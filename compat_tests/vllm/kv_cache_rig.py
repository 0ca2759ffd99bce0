"""One rank's KV cache as vLLM allocates it, under our worker half.

vLLM's own code places and views the memory. What is expected is written down from the views alone,
`[B, H, N, C]` for each layer whatever the order in memory.
"""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from fakes import placement_config
from vllm.config import VllmConfig
from vllm.v1.core.kv_cache_utils import get_kv_cache_config_from_groups
from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    FullAttentionSpec,
    KVCacheGroupSpec,
    KVQuantMode,
    MLAAttentionSpec,
)
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.worker.utils import allocate_kv_cache

from flexkv_connectors.session.deployment import PageShape
from flexkv_connectors.session.orders import Load
from flexkv_connectors.session.promises import Promises
from flexkv_connectors.vllm.cpu_pages import PLAIN
from flexkv_connectors.vllm.deployment import VllmDeployment
from flexkv_connectors.vllm.metadata import VllmOrders
from flexkv_connectors.vllm.worker import WorkerHalf
from flexkv_core.config import parse_config
from flexkv_core.plan import Endpoint, EnginePages, HostSlots, Status, TransferPlan

NUM_LAYERS = 11  # "layers.10" comes after "layers.9", and before it in the alphabet
NUM_PAGES = 12
PAGE_TOKENS = 16
PAGES_PER_BLOCK = 2
NAMES = [f"model.layers.{layer}.self_attn.attn" for layer in range(NUM_LAYERS)]
POISON = 0xDB

_DENSE: dict[str, Any] = {"block_size": PAGE_TOKENS, "num_kv_heads": 2, "head_size": 8}
_LATENT: dict[str, Any] = {"block_size": PAGE_TOKENS, "num_kv_heads": 1, "head_size": 16}
SPECS: dict[str, AttentionSpec] = {
    "bf16": FullAttentionSpec(**_DENSE, dtype=torch.bfloat16),
    "small values": FullAttentionSpec(**_DENSE, dtype=torch.bfloat16, head_size_v=4),
    "fp8 as uint8": FullAttentionSpec(
        **_DENSE, dtype=torch.uint8, kv_quant_mode=KVQuantMode.FP8_PER_TENSOR
    ),
    "fp8": FullAttentionSpec(**_DENSE, dtype=torch.float8_e4m3fn),
    "scales behind the values": FullAttentionSpec(
        **_DENSE,
        dtype=torch.uint8,
        kv_quant_mode=KVQuantMode.INT8_PER_TOKEN_HEAD,
        state_content_bytes=24,
    ),
    "K and V in head slots": FullAttentionSpec(
        **_DENSE, dtype=torch.uint8, num_head_slots=4, state_content_bytes=8
    ),
    "padded pages": FullAttentionSpec(**_DENSE, dtype=torch.bfloat16, page_size_padded=2048),
    "aligned pages": FullAttentionSpec(
        **_DENSE, dtype=torch.bfloat16, head_size_v=4, block_stride_alignment=1024
    ),
    "mla": MLAAttentionSpec(**_LATENT, dtype=torch.bfloat16),
    "mla fp8": MLAAttentionSpec(**_LATENT, dtype=torch.uint8, cache_dtype_str="fp8"),
}


class Case(NamedTuple):
    """A row of `SPECS`, a layout, and the kernel's block where it is smaller than vLLM's."""

    spec: str
    layout: str
    kernel_tokens: int = PAGE_TOKENS


class Rig:
    """vLLM's tensors, filled with a ramp, and our worker half over them."""

    def __init__(self, case: Case) -> None:
        spec = SPECS[case.spec]
        tensors = allocate(spec, case.layout, case.kernel_tokens)
        self._views = [tensors[name].view(torch.uint8).numpy() for name in NAMES]
        self._ratio = PAGE_TOKENS // case.kernel_tokens
        self.storage = tensors[NAMES[0]].untyped_storage()
        self.storage.fill_(POISON)
        self.ramp = _ramp(spec)
        self._write(self.ramp)
        self._promises = Promises()
        self.worker = WorkerHalf(deployment(spec), self._promises, origin=None)
        self.worker.register(tensors)
        self.worker.take_reports()

    def read(self) -> np.ndarray:
        """Return `[L, B, H, N, C]` bytes as vLLM's views show them."""
        seen = np.stack(self._views)
        layers, rows, heads, _, width = seen.shape
        split = seen.reshape(layers, rows // self._ratio, self._ratio, heads, -1, width)
        return split.swapaxes(2, 3).reshape(self.ramp.shape)

    def save(self, pages: list[int], slots: list[int]) -> None:
        """Save vLLM's blocks `pages` into host slots."""
        self.order_save(pages, slots)
        self._expect_success()

    def order_save(self, pages: list[int], slots: list[int]) -> None:
        """Begin to save vLLM's blocks `pages` into host slots."""
        self.worker.begin_step(VllmOrders(saves=[_plan(EnginePages(pages), _places(slots), slots)]))
        self.worker.save()

    def load(self, slots: list[int], pages: list[int], first_page: int) -> None:
        """Load host slots, from page `first_page` of the first, into vLLM's blocks `pages`."""
        plan = _plan(_places(slots), EnginePages(pages, first_page), slots)
        self._promises.make("r", pages)
        self.worker.load(VllmOrders(loads=[Load("r", pages, plan)]))
        self._expect_success()
        assert self._promises.take_finished() == {"r"}
        assert not self._promises.take_failed_pages()

    def slot(self, slot: int) -> bytes:
        """Return the content of a host slot."""
        pool = self.worker.session.pool
        assert pool is not None
        start = slot * pool.slot_stride
        return bytes(pool.buffer[start : start + pool.slot_bytes])

    def _write(self, content: np.ndarray) -> None:
        layers, pages, heads, _, width = content.shape
        rows = content.reshape(layers, pages, heads, self._ratio, -1, width).swapaxes(2, 3)
        for view, layer in zip(self._views, rows, strict=True):
            view[...] = layer.reshape(view.shape)

    def _expect_success(self) -> None:
        self.worker.collect()
        reports = self.worker.take_reports()
        assert reports is not None
        ((result,),) = (report.results for report in reports.reports)
        assert result.status is Status.OK, result.error


def allocate(
    spec: AttentionSpec, layout: str, kernel_tokens: int = PAGE_TOKENS, names: list[str] = NAMES
) -> dict[str, torch.Tensor]:
    """Let vLLM place and view a cache, as its engine core and its model runner do."""
    config = placement_config(KVCacheLayout[layout], NUM_PAGES)
    groups = [KVCacheGroupSpec(list(names), spec)]
    placed = get_kv_cache_config_from_groups(cast("VllmConfig", config), groups, 1 << 30)
    assert placed.num_blocks == NUM_PAGES
    return allocate_kv_cache(placed, torch.device("cpu"), KVCacheLayout[layout], [kernel_tokens])


def declared(spec: AttentionSpec) -> PageShape:
    """Return what the connector knows of the pages before it has seen them."""
    return PageShape(spec.num_heads, spec.block_size, spec.state_content_size_bytes)


def deployment(spec: AttentionSpec) -> VllmDeployment:
    """Return a deployment of one rank."""
    return VllmDeployment(
        cache=parse_config({"cpu_cache_gb": 1e-3}),
        rank=0,
        num_ranks=1,
        num_replicas=1,
        num_engines=1,
        num_nodes=1,
        page_shape=declared(spec),
        page_order=PLAIN,
        head_size=spec.head_size,
        element_bytes=spec.dtype.itemsize,
        num_layers=NUM_LAYERS,
        first_layer=0,
        total_heads=spec.num_heads,
        cell_heads=spec.num_heads,
        block_tokens=PAGES_PER_BLOCK * PAGE_TOKENS,
        step_tokens=2048,
        draft_blocks=0,
        publishes_events=False,
        engine_id="engine",
    )


def _ramp(spec: AttentionSpec) -> np.ndarray:
    """Return `[L, B, H, N, C]` bytes in which every 4 are different."""
    width = spec.state_content_size_bytes // 4
    shape = NUM_LAYERS, NUM_PAGES, spec.num_heads, PAGE_TOKENS, width
    return np.arange(np.prod(shape), dtype=np.uint32).reshape(shape).view(np.uint8)


def _plan(source: Endpoint, target: Endpoint, slots: list[int]) -> TransferPlan:
    return TransferPlan(job_id=1, source=source, target=target, num_blocks=len(slots))


def _places(slots: list[int]) -> HostSlots:
    return HostSlots(np.array(slots, np.int64).tobytes())
