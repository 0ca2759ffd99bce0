"""Pools in every layout that the engines have, in plain memory, and a slow copy to compare with."""

import torch
from flexkv_kernels import PageViews

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
POISON = 0xA5

# Axes from the outermost: L layer, B page, H head, N token, C content; P for K and V where they
# are apart. "+" begins an allocation of its own for each step of the axes before it.
LAYOUTS = {
    "vLLM LBHNC (HND)": "LBHNC",
    "vLLM LBNHC (NHD)": "LBNHC",
    "vLLM LHBNC": "LHBNC",
    "vLLM BLHNC (cross-layer)": "BLHNC",
    "vLLM BLNHC": "BLNHC",
    "vLLM BHLNC": "BHLNC",
    "vLLM 0.24, layers apart": "L+BPNHC",
    "SGLang token slots": "LP+BNHC",
    "SGLang host, layer first": "PLBNHC",
    "SGLang host, page first": "PBNLHC",
    "SGLang host, page first direct": "PBLNHC",
    "SGLang host, page head": "PBHNLC",
    "TensorRT-LLM": "BLPHNC",
}
PACKED_LAYOUTS = [name for name, axes in LAYOUTS.items() if "P" not in axes]


class Pool:
    """Pages in memory with a guard on each side, every byte of it poisoned or random."""

    def __init__(self, axes, *, seed=None, padding=64, dtype=torch.uint8, **sizes):
        apart, _, within = axes.rpartition("+")
        self.sizes = {"P": 1, **sizes}
        self.planes = self.sizes["P"]
        count = torch.Size([self.sizes[axis] for axis in apart]).numel()
        self.memory = [filled(padding, within, self.sizes, seed) for _ in range(count)]
        axes_of_slabs = [axis for axis in "LP" if axis in within]
        views = []
        for memory in self.memory:
            whole = memory[padding : len(memory) - padding].view(dtype)
            shape = [self.sizes[axis] for axis in within]
            shape[-1] //= dtype.itemsize
            order = [within.index(axis) for axis in (*axes_of_slabs, *"BHNC")]
            slabs = [whole.view(shape).permute(order)]
            for _ in axes_of_slabs:
                slabs = [step for slab in slabs for step in slab.unbind()]
            views += slabs
        self.views = PageViews(views)

    def bytes(self):
        """Return all of its memory, guards included."""
        return torch.cat([memory.cpu() for memory in self.memory])


def filled(padding, within, sizes, seed):
    num_bytes = torch.Size([sizes[axis] for axis in within]).numel() + 2 * padding
    if seed is None:
        return torch.full((num_bytes,), POISON, dtype=torch.uint8, device=DEVICE)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num_bytes,), dtype=torch.uint8, generator=generator).to(DEVICE)


def copy_by_hand(source, source_ids, target, target_ids):
    """Copy one token of one head at a time, in the order of the definition."""
    tokens = min(source.page_tokens, target.page_tokens)
    for from_slab, to_slab in zip(source.slabs, target.slabs, strict=True):
        for from_id, to_id in zip(source_ids.tolist(), target_ids.tolist(), strict=True):
            for token in range(tokens):
                from_page, from_token = divmod(from_id * tokens + token, source.page_tokens)
                to_page, to_token = divmod(to_id * tokens + token, target.page_tokens)
                for head in range(source.num_heads):
                    content = from_slab[from_page, head, from_token].view(torch.uint8)
                    to_slab[to_page, head, to_token].view(torch.uint8).copy_(content)
