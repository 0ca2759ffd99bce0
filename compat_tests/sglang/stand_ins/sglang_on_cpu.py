"""Stands in for the CUDA copies between SGLang's device and host pools: the same in plain torch.

SGLang's attention for CPUs writes the KV of a sliding window where the window's own pool has it,
and reads it by the indices of the other pool: the same until something was restored (0.5.23).

Beside a build of torch for CUDA there is NCCL, too, which SGLang would use without a GPU.

What serves LoRA adapters pins memory, whatever device there is. To 0.5.21, pages are given out by
kernels of Triton.

SGLang runs as its own plug-in (entry point group `sglang.srt.plugins`); see the folder beside this.
"""

from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import torch


def register():
    """Replace the copies in the modules that call them."""
    from sglang.srt.distributed.device_communicators import pynccl
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend as Attention
    from sglang.srt.lora import layers as adapter_layers
    from sglang.srt.lora.backend import torch_backend as adapter_backend
    from sglang.srt.mem_cache.allocator import paged
    from sglang.srt.mem_cache.pool_host import common, mamba, mha, mla
    from sglang.srt.models import lfm2
    from sglang.srt.models.deepseek_common import attention_backend_handler as latents

    latents.AttentionBackendRegistry.register("torch_native", attend_to_latents)
    pynccl.NCCLLibrary = no_library
    common._cuda_host_register = lambda *args, **kwargs: None
    Attention.forward_extend = by_indices_of_the_layer(Attention.forward_extend)
    Attention.forward_decode = by_indices_of_the_layer(Attention.forward_decode)
    lfm2.causal_conv1d_fn, lfm2.causal_conv1d_update = convolve, convolve_one
    paged.alloc_extend_kernel = Kernel(partial(give_for_prompts, paged.alloc_extend_naive))
    paged.alloc_decode_kernel = Kernel(give_for_tokens)
    torch.Tensor.pin_memory = lambda tensor, *_: tensor
    adapter_layers.torch = adapter_backend.torch = UnpinnedTorch()
    for module in (mamba, mha, mla):
        module.transfer_kv_direct = transfer_kv_direct
        module.transfer_kv_per_layer_direct_pf_lf = load_layer_from_pages
        module.transfer_kv_all_layer_direct_lf_pf = save_layers_to_pages


class Kernel:
    """A function that is called as a kernel of Triton is: `kernel[grid](...)`."""

    def __init__(self, function):
        self._function = function

    def __getitem__(self, grid):
        return self._function


def give_for_prompts(naive, prefix_lens, seq_lens, last_loc, free_pages, out, _, page_size):
    """Give places to the new tokens of requests, by SGLang's own function for other devices."""
    naive(prefix_lens, seq_lens, last_loc, free_pages, out, page_size, "cpu")


def give_for_tokens(seq_lens, last_loc, free_pages, out, _, page_size):
    """Give a place to one more token of each request: the next one, or a free page's first."""
    is_first = (seq_lens - 1) % page_size == 0
    pages = free_pages[: int(is_first.sum())]
    out.copy_(last_loc + 1)
    out[is_first] = pages * page_size


def unpinned(make):
    """Let a function of torch that makes tensors pin none."""
    return lambda *args, pin_memory=False, **kwargs: make(*args, **kwargs)


class UnpinnedTorch:
    """Torch for a module that pins memory."""

    tensor, zeros = staticmethod(unpinned(torch.tensor)), staticmethod(unpinned(torch.zeros))

    def __getattr__(self, name):
        return getattr(torch, name)


def by_indices_of_the_layer(forward):
    """Let a forward read the KV of layers with a sliding window from where it is."""

    def translated(self, q, k, v, layer, *args, **kwargs):
        requests, pool = self.req_to_token_pool, self.token_to_kv_pool
        mapping = getattr(pool, "layers_mapping", {})
        if mapping.get(layer.layer_id, (0, False))[1]:
            table = pool.translate_loc_from_full_to_swa(requests.req_to_token)
            self.req_to_token_pool = SimpleNamespace(req_to_token=table)
        try:
            return forward(self, q, k, v, layer, *args, **kwargs)
        finally:
            self.req_to_token_pool = requests

    return translated


def attend_to_latents(attention, batch):
    """Choose the way of multi-head latent attention that reads its pool as it is.

    SGLang has a choice for every backend but this one, and takes that of Triton.
    """
    from sglang.srt.models.deepseek_common.attention_forward_methods import AttnForwardMethod

    return AttnForwardMethod.MLA


def no_library(path=None):
    """Refuse, as where NCCL is not installed: SGLang goes on by gloo."""
    raise RuntimeError("there is no GPU to connect")


def transfer_kv_direct(src_layers, dst_layers, src_indices, dst_indices, page_size):
    """Copy tokens between pools that are both layer first."""
    for source, target in zip(src_layers, dst_layers, strict=True):
        target[dst_indices] = source[src_indices]


def load_layer_from_pages(src_ptrs, dst_ptrs, src_indices, dst_indices, layer_id, page_size):
    """Copy one layer from `[page, layer, token, ...]` to tokens."""
    pages = src_indices[::page_size] // page_size
    for source, target in zip(src_ptrs, dst_ptrs, strict=True):
        tokens = source[pages, layer_id]
        target[dst_indices] = tokens.reshape(-1, *tokens.shape[2:])


def save_layers_to_pages(src_ptrs, dst_ptrs, src_indices, dst_indices, page_size):
    """Copy all layers of tokens to `[page, layer, token, ...]`: the keys, then the values."""
    pages = dst_indices[::page_size] // page_size
    num_layers = len(src_ptrs) // len(dst_ptrs)
    for position, source in enumerate(src_ptrs):
        tokens = source[src_indices]
        target = dst_ptrs[position // num_layers]
        target[pages, position % num_layers] = tokens.reshape(-1, page_size, *tokens.shape[1:])


def convolve(
    x, weight, bias, query_start_loc, cache_indices, has_initial_state, conv_states, activation
):
    """Convolve tokens of requests, `[channel, token]`; the last of each are its state."""
    outputs = []
    bounds = pairwise(query_start_loc.tolist())
    for (first, end), index, is_going_on in zip(
        bounds, cache_indices, has_initial_state, strict=False
    ):
        seen = torch.cat([conv_states[index] * is_going_on, x[:, first:end]], dim=1)
        conv_states[index] = seen[:, -conv_states.shape[-1] :]
        outputs.append(torch.conv1d(seen[None], weight[:, None], bias, groups=len(weight))[0])
    return torch.cat(outputs, dim=1)


def convolve_one(x, conv_state, weight, bias, activation, conv_state_indices):
    """Convolve one more token of each request, `[request, channel]`."""
    seen = torch.cat([conv_state[conv_state_indices], x[..., None]], dim=-1)
    conv_state[conv_state_indices] = seen[..., 1:].to(conv_state.dtype)
    convolved = (seen * weight).sum(dim=-1)
    return convolved if bias is None else convolved + bias
