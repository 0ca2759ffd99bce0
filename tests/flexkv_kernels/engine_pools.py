"""Pools allocated and viewed as the engines do it, and what of them is one layer's `[B, H, N, C]`.

Every function takes a dtype and returns the whole allocation as bytes, poisoned, and the slabs.
Blocks are named by what the engine counts them in; a page is what the copy counts in.
"""

import torch
from layouts import DEVICE, POISON

LAYERS, BLOCKS, HEADS, TOKENS, DIM = 2, 5, 2, 8, 16
LATENT = 36


def allocate(num_bytes):
    return torch.full((num_bytes,), POISON, dtype=torch.uint8, device=DEVICE)


def shaped(dtype, *shape):
    memory = allocate(torch.Size(shape).numel() * dtype.itemsize)
    return memory, memory.view(dtype).view(shape)


def vllm_backing(dtype, strides, shape, layer_stride, offset=0):
    """Cut vLLM's one int8 allocation into views of `shape` by `strides`, in elements."""
    size = offset + LAYERS * BLOCKS * shape[1] * shape[2] * shape[3] * 2  # room for padded pages
    backing = allocate(size * dtype.itemsize).view(torch.int8)
    typed = backing.view(dtype)
    views = [
        typed.as_strided(shape, strides, offset + layer * layer_stride) for layer in range(LAYERS)
    ]
    return backing.view(torch.uint8), views


def vllm_packed(dtype, *, hnd):
    content = 2 * DIM
    shape = (BLOCKS, HEADS, TOKENS, content)
    page = HEADS * TOKENS * content
    inner = (TOKENS * content, content) if hnd else (content, HEADS * content)
    return vllm_backing(dtype, (page, *inner, 1), shape, BLOCKS * page)


def vllm_cross_layer(dtype):
    content, page = 2 * DIM, HEADS * TOKENS * 2 * DIM
    strides = (LAYERS * page, TOKENS * content, content, 1)
    return vllm_backing(dtype, strides, (BLOCKS, HEADS, TOKENS, content), page)


def vllm_head_major_block(dtype):
    content = 2 * DIM
    head = LAYERS * TOKENS * content
    strides = (HEADS * head, head, content, 1)
    return vllm_backing(dtype, strides, (BLOCKS, HEADS, TOKENS, content), TOKENS * content)


def vllm_kernel_block(dtype):
    """Two kernel blocks in one of the manager's: the view counts the former."""
    content, tokens = 2 * DIM, TOKENS // 2
    page = HEADS * tokens * content
    shape = (2 * BLOCKS, HEADS, tokens, content)
    return vllm_backing(dtype, (page, tokens * content, content, 1), shape, 2 * BLOCKS * page)


def vllm_latent(dtype):
    page = TOKENS * LATENT
    return vllm_backing(dtype, (page, page, LATENT, 1), (BLOCKS, 1, TOKENS, LATENT), BLOCKS * page)


def vllm_padded_page(dtype):
    """Pages as far apart as those of a larger group."""
    content, page = 2 * DIM, HEADS * TOKENS * 2 * DIM + 24
    strides = (page, TOKENS * content, content, 1)
    return vllm_backing(dtype, strides, (BLOCKS, HEADS, TOKENS, content), BLOCKS * page, offset=8)


def vllm_planes_of_a_block(dtype):
    """vLLM 0.24: `[B, 2, N, H, D]`, as it is for FlashAttention."""
    memory, pool = shaped(dtype, LAYERS, BLOCKS, 2, TOKENS, HEADS, DIM)
    return memory, [pool[layer, :, kv].transpose(1, 2) for layer in range(LAYERS) for kv in (0, 1)]


def sglang_token_slots(dtype):
    """`[2, L, size, H, D]`: the pool of a device, and a host pool that is layer_first."""
    memory, pool = shaped(dtype, 2, LAYERS, BLOCKS * TOKENS, HEADS, DIM)
    slots = [pool[kv, layer] for layer in range(LAYERS) for kv in (0, 1)]
    return memory, [slot.unflatten(0, (BLOCKS, TOKENS)).transpose(1, 2) for slot in slots]


def sglang_page_first(dtype):
    memory, pool = shaped(dtype, 2, BLOCKS * TOKENS, LAYERS, HEADS, DIM)
    pages = pool.unflatten(1, (BLOCKS, TOKENS))  # [P, B, N, L, H, D]
    slabs = [pages[kv, :, :, layer] for layer in range(LAYERS) for kv in (0, 1)]
    return memory, [slab.transpose(1, 2) for slab in slabs]


def sglang_page_first_direct(dtype):
    memory, pool = shaped(dtype, 2, BLOCKS, LAYERS, TOKENS, HEADS, DIM)
    slabs = [pool[kv, :, layer] for layer in range(LAYERS) for kv in (0, 1)]
    return memory, [slab.transpose(1, 2) for slab in slabs]


def sglang_page_head(dtype):
    memory, pool = shaped(dtype, 2, BLOCKS, HEADS, TOKENS, LAYERS, DIM)
    return memory, [pool[kv, :, :, :, layer] for layer in range(LAYERS) for kv in (0, 1)]


def sglang_latent_layer_first(dtype):
    memory, pool = shaped(dtype, LAYERS, BLOCKS * TOKENS, 1, LATENT)
    return memory, [slots.unflatten(0, (BLOCKS, TOKENS)).transpose(1, 2) for slots in pool]


def sglang_latent_page_first(dtype):
    memory, pool = shaped(dtype, BLOCKS * TOKENS, LAYERS, 1, LATENT)
    pages = pool.unflatten(0, (BLOCKS, TOKENS))
    return memory, [pages[:, :, layer].transpose(1, 2) for layer in range(LAYERS)]


def sglang_latent_page_first_direct(dtype):
    memory, pool = shaped(dtype, BLOCKS, LAYERS, TOKENS, 1, LATENT)
    return memory, [pool[:, layer].transpose(1, 2) for layer in range(LAYERS)]


def tensorrt_llm(dtype):
    """`[blocks, layers, 2, flat]`, a head's tokens on end in what is flat."""
    memory, pool = shaped(dtype, BLOCKS, LAYERS, 2, HEADS * TOKENS * DIM)
    pages = pool.unflatten(3, (HEADS, TOKENS, DIM))
    return memory, [pages[:, layer, kv] for layer in range(LAYERS) for kv in (0, 1)]


def tensorrt_llm_latent(dtype):
    memory, pool = shaped(dtype, BLOCKS, LAYERS, 1, TOKENS * LATENT)
    pages = pool.unflatten(3, (1, TOKENS, LATENT))
    return memory, [pages[:, layer, 0] for layer in range(LAYERS)]


ENGINE_POOLS = {
    "vLLM, NHD": lambda dtype: vllm_packed(dtype, hnd=False),
    "vLLM, HND": lambda dtype: vllm_packed(dtype, hnd=True),
    "vLLM, cross-layer": vllm_cross_layer,
    "vLLM, heads before layers": vllm_head_major_block,
    "vLLM, kernel block smaller than the manager's": vllm_kernel_block,
    "vLLM, MLA": vllm_latent,
    "vLLM, padded pages": vllm_padded_page,
    "vLLM 0.24, K and V in a block": vllm_planes_of_a_block,
    "SGLang, token slots and layer_first": sglang_token_slots,
    "SGLang host, page_first": sglang_page_first,
    "SGLang host, page_first_direct": sglang_page_first_direct,
    "SGLang host, page_head": sglang_page_head,
    "SGLang MLA, layer_first": sglang_latent_layer_first,
    "SGLang MLA, page_first": sglang_latent_page_first,
    "SGLang MLA, page_first_direct": sglang_latent_page_first_direct,
    "TensorRT-LLM": tensorrt_llm,
    "TensorRT-LLM, MLA": tensorrt_llm_latent,
}
DTYPES = {
    "byte-packed fp4": torch.float4_e2m1fn_x2,
    "fp8": torch.float8_e4m3fn,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
}
