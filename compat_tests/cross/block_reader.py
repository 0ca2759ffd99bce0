"""Reads a prompt's KV from an SSD directory without an engine: a third reader of the format.

It knows what the slabs say of themselves, and the key chain; not who wrote them.
"""

from contextlib import closing
from pathlib import Path

import torch

from flexkv_core.block.cells import columns_of
from flexkv_core.block.keys import KeyChain
from flexkv_core.block.namespace import Namespace
from flexkv_core.block.types import BlockKey
from flexkv_core.data.tiers.base import TierBlock
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.tiers.ssd.column_tier import BlockShare
from flexkv_core.data.tiers.ssd.format import PAGE_BYTES, Superblock
from flexkv_core.data.tiers.ssd.options import SsdOptions
from flexkv_core.data.tiers.ssd.tier import SsdTier
from flexkv_core.plan import Status

ROOM_BYTES = 1 << 30


def read_kv(directory: Path, prompt: list[int]) -> torch.Tensor:
    """Return `[layer, K or V, head, token, content]` of the whole blocks of a prompt.

    Every block has to be there, with the bytes that its checksum states. No engine may be using
    the directory.
    """
    namespace = namespace_of(directory)
    chain = KeyChain(namespace.block_tokens)
    chain.advance(prompt)
    blocks = read_blocks(directory, namespace, chain.keys)
    num_planes = 2
    grid = (namespace.num_layers, namespace.block_tokens, num_planes, namespace.key_head_size)
    by_head = blocks.view(len(chain.keys), namespace.num_kv_heads, *grid)
    block, head, layer, token, plane, content = range(by_head.dim())
    return by_head.permute(layer, plane, head, block, token, content).flatten(3, 4)


def namespace_of(directory: Path) -> Namespace:
    """Return what the only namespace in a directory says of itself."""
    found = set()
    for slab in directory.rglob("*.slab"):
        with slab.open("rb") as file:
            superblock = Superblock.unpack(file.read(PAGE_BYTES))
        assert superblock is not None, slab
        found.add(superblock.namespace)
    (namespace,) = found
    return namespace


def read_blocks(directory: Path, namespace: Namespace, keys: list[BlockKey]) -> torch.Tensor:
    """Return the verified bytes of a chain of blocks, one block behind the other."""
    columns = columns_of(
        range(namespace.num_kv_heads), range(namespace.num_layers), namespace.cell_heads
    )
    dtype = getattr(torch, namespace.kv_cache_dtype)
    token_bytes = (namespace.key_head_size + namespace.value_head_size) * dtype.itemsize
    head_bytes = namespace.num_layers * namespace.block_tokens * token_bytes
    pool = HostPool.create(len(keys), namespace.num_kv_heads * head_bytes)
    options = SsdOptions(directories=(directory,), quota_bytes=ROOM_BYTES)
    cell_bytes = namespace.cell_heads * head_bytes
    tier = SsdTier(pool.memory, BlockShare(namespace, columns, cell_bytes, "third-reader"), options)
    with closing(pool), closing(tier):
        tier.wait_recovered()
        wanted = [
            TierBlock(key, parent, slot)
            for slot, (parent, key) in enumerate(zip([None, *keys], keys, strict=False))
        ]
        assert set(tier.read(wanted, deadline_s=None)) == {Status.OK}
        blocks = b"".join(piece for slot in range(len(keys)) for piece in pool.memory.pieces(slot))
    return torch.frombuffer(bytearray(blocks), dtype=dtype)
