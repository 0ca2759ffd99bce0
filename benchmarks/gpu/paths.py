"""The lane, kernel and copies together, against one flat copy of the same bytes in each round."""

from collections.abc import Callable, Iterator

from benchmarks.gpu.budget import compare
from benchmarks.gpu.lane_rig import LaneRig
from benchmarks.gpu.limits import FlatCopies
from benchmarks.gpu.machine import pinned, seconds
from benchmarks.gpu.shapes import LAYOUTS, MODELS, Model, block_format, layouts_of
from benchmarks.rows import Row, spread

PAGE_TOKENS = 16
SMALL_TRANSFERS = (1, 4, 16, 64)


def lanes(rounds: int, payload: int) -> Iterator[Row]:
    """Measure every model and layout in blocks of 64 tokens, and two more sizes for the first."""
    cases = [(model, axes, 64) for model in MODELS for axes in layouts_of(model)]
    cases += [(MODELS[0], LAYOUTS[0], block_tokens) for block_tokens in (16, 256)]
    for model, axes, block_tokens in cases:
        yield from lane(model, axes, block_tokens, payload, rounds)


def lane(model: Model, axes: str, block_tokens: int, payload: int, rounds: int) -> Iterator[Row]:
    """Measure save, load, and both at once."""
    num_blocks = max(1, payload // block_format(model, block_tokens).block_bytes)
    rig = LaneRig(model, axes, block_tokens, PAGE_TOKENS, num_blocks)
    size, copies = rig.num_bytes, FlatCopies(rig.num_bytes)
    kinds = {
        "save": (size, copies.out, rig.save),
        "load": (size, copies.into, rig.load),
        "both": (2 * size, copies.both, rig.both),
    }
    for kind, (num_bytes, plain, queue) in kinds.items():
        runs = {"flat": plain, "lane": finished(rig, queue)}
        timed = {name: lambda run=run: seconds(run) for name, run in runs.items()}
        for row in compare(timed, dict.fromkeys(timed, num_bytes), rounds):
            yield {
                "benchmark": "gpu_lane",
                "model": model.name,
                "layout": axes,
                "block_tokens": block_tokens,
                "kind": kind,
                **row,
            }
    rig.close()


def finished(rig: LaneRig, queue: Callable[[], None]) -> Callable[[], None]:
    """Return `queue` that ends when the lane has reported."""

    def run() -> None:
        queue()
        rig.finish()

    return run


def small_transfers(rounds: int) -> Iterator[Row]:
    """Measure one save and one load of a few blocks, from its plan to its report."""
    model = MODELS[0]
    for num_blocks in SMALL_TRANSFERS:
        rig = LaneRig(model, LAYOUTS[0], 64, PAGE_TOKENS, num_blocks)
        for kind, queue in {"save": rig.save, "load": rig.load}.items():
            run = finished(rig, queue)
            taken_us = [1e6 * seconds(run) for _ in range(rounds + 1)][1:]
            case = {"model": model.name, "blocks": num_blocks, "kind": kind}
            yield {"benchmark": "gpu_small", **case, **spread("us", taken_us), "rounds": rounds}
        rig.close()


def baselines(rounds: int, payload: int) -> Iterator[Row]:
    """Measure what a connector without a kernel does, to save the same pages."""
    import torch  # noqa: PLC0415 not there everywhere

    model, axes = MODELS[0], "LBHNC"  # a page of a layer is one piece, as they need it
    num_blocks = max(1, payload // block_format(model, PAGE_TOKENS).block_bytes)
    rig = LaneRig(model, axes, PAGE_TOKENS, PAGE_TOKENS, num_blocks)
    pages = torch.randperm(2 * num_blocks)[:num_blocks].to(rig.slabs[0].device)
    host = pinned(rig.num_bytes).view(num_blocks, model.num_layers, -1)

    def index_ops() -> None:
        picked = torch.stack([slab[pages] for slab in rig.slabs], 1)
        host.copy_(picked.view(host.shape), non_blocking=True)

    def page_copies() -> None:
        for index, page in enumerate(pages.tolist()):
            for layer, slab in enumerate(rig.slabs):
                host[index, layer].view(slab[page].shape).copy_(slab[page], non_blocking=True)

    copies = {"flat": FlatCopies(rig.num_bytes).out, "lane": finished(rig, rig.save)}
    copies |= {"torch index operations": index_ops, "one copy a page and layer": page_copies}
    runs = {name: lambda run=run: seconds(run) for name, run in copies.items()}
    for row in compare(runs, dict.fromkeys(runs, rig.num_bytes), rounds):
        yield {"benchmark": "gpu_baselines", "model": model.name, "layout": axes, **row}
    rig.close()
