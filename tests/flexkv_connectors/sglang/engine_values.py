"""One engine's settings, storage configuration and pools, as SGLang would hand them to us."""

from types import SimpleNamespace

import numpy as np
from host_pools import MHATokenToKVPoolHost, MLATokenToKVPoolHost

from flexkv_connectors.sglang.deployment import read_cache_config, translate
from flexkv_connectors.sglang.settings import EngineSettings

LAYERS, HEADS, SIZE, TOKENS, PAGES = 6, 4, 32, 16, 3
OPTIONS = {"interface_v1": 1, "ssd_cache_gb": 1, "ssd_cache_dir": "/nowhere"}


def settings(**changes):
    values = {
        "version": "0.5.23",
        "model": "/no/model",
        "revision": None,
        "hub_cache": None,
        "load_format": "auto",
        "runs_code": False,
        "implementation": "auto",
        "dtype": "torch.float16",
        "quantization": "",
        "kv_scales_path": None,
        "overrides": {},
        "context_length": 4096,
        "rope": "{'rope_theta': 10000.0}",
        "num_layers": LAYERS,
        "num_kv_heads": HEADS,
        "engine_index": 0,
        "num_nodes": 1,
        "tp_size": 1,
        "is_multimodal": False,
        "needs_every_token": "",
        "speculative_algorithm": "",
        "draft_model": None,
        "draft_revision": None,
        "draft_adapter": None,
        "adapters": {},
    }
    return EngineSettings(**values | changes)


def storage(**changes):
    values = {
        "tp_rank": 0,
        "tp_size": 1,
        "pp_rank": 0,
        "pp_size": 1,
        "attn_cp_size": 1,
        "dcp_size": 1,
        "dp_rank": 0,
        "is_mla_model": False,
    }
    return SimpleNamespace(**values | changes)


def keys_and_values(num_heads=HEADS, num_layers=LAYERS):
    array = np.zeros((2, PAGES, num_layers, TOKENS, num_heads, SIZE), np.float16)
    return MHATokenToKVPoolHost("page_first_direct", array, PAGES, TOKENS)


def latents():
    array = np.zeros((PAGES, LAYERS, TOKENS, 1, SIZE), np.float16)
    return MLATokenToKVPoolHost("page_first_direct", array, PAGES, TOKENS)


def deployment(pool=None, options=None, engine=None, **place):
    return translate(
        read_cache_config(OPTIONS | (options or {})),
        storage(**place),
        pool or keys_and_values(),
        engine or settings(),
    )
