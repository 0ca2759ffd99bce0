"""Lets a test look into SGLang's own pages, and write into its weights; see `engine_child`.

SGLang runs as its own plug-in, in its scheduler process; its `collective_rpc` calls methods of the
scheduler by name.
"""

import sys
from array import array


def register():
    """Give the scheduler methods, in the process that has one."""
    module = sys.modules.get("sglang.srt.managers.scheduler")
    if module is not None:
        module.Scheduler.write_kv = write_kv
        module.Scheduler.double_weights = double_weights


def write_kv(scheduler, tokens, path):
    """Write `[layer, K or V, head, token, content]` of the cached pages of a prompt to a file."""
    import torch
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

    key = RadixKey(array("q", tokens))
    found = scheduler.tree_cache.match_prefix(MatchPrefixParams(key=key))
    places = scheduler.tree_cache.path_device_indices(found.last_device_node)
    pool = scheduler.token_to_kv_pool_allocator.get_kvcache()
    layers = [
        torch.stack((pool.get_key_buffer(layer)[places], pool.get_value_buffer(layer)[places]))
        for layer in range(pool.layer_num)
    ]
    torch.save(torch.stack(layers).transpose(2, 3).contiguous(), path)


def double_weights(scheduler, changed):
    """Write into the weights named like `changed` without a word, as peers do by RDMA."""
    import torch

    with torch.no_grad():
        for name, weight in scheduler.tp_worker.model_runner.model.named_parameters():
            if changed in name:
                weight.mul_(2)
