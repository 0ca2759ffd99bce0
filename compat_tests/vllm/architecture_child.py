"""Says what FlexKV does with architectures and starts on one platform, as a line of JSON each.

    architecture_child.py PLATFORM DEGREES [NAME ...]

PLATFORM is `cpu`, for the session, or `gpu`, for vLLM's offloading: that one is pretended.
DEGREES are those of tensor parallelism, as in 1,8. Without a NAME, all of them and the starts.
"""

import json
import os
import sys
from collections import Counter
from contextlib import ExitStack
from fractions import Fraction
from unittest import mock

from architectures import ARCHITECTURES
from pretended_gpu import pretend
from starts import STARTS

if __name__ == "__main__" and sys.argv[1] == "gpu":
    pretend()

from identity_rig import changed
from model_on_no_device import cache_configs, configure, prepare
from vllm.platforms import current_platform
from vllm.v1.kv_offload.factory import OffloadingSpecFactory

from flexkv_connectors.vllm.deployment import translate
from flexkv_connectors.vllm.deployment import why_not as why_no_session
from flexkv_connectors.vllm.offloading.engine import OffloadingEngine
from flexkv_connectors.vllm.offloading.options import (
    build_offloading_config,
    read_options,
    region_bytes,
    row_bytes,
    translated,
)
from flexkv_connectors.vllm.offloading.region import why_no_room
from flexkv_connectors.vllm.offloading.rows import Rows, origin_of_rows
from flexkv_connectors.vllm.offloading.support import why_not as why_no_offloading
from flexkv_core.config import parse_config

OPTIONS = {"cpu_cache_gb": 16}
KINDS = {
    "FullAttentionSpec": "full attention",
    "MLAAttentionSpec": "MLA",
    "SlidingWindowSpec": "window",
    "SlidingWindowMLASpec": "MLA window",
    "ChunkedLocalAttentionSpec": "chunks",
    "MambaSpec": "states",
}


def describe(name, degree):
    """Return what is kept of an architecture, and what FlexKV does with it."""
    try:
        config = configure(ARCHITECTURES[name].config, degree, **OPTIONS)
        worker, scheduler = cache_configs(config)
    except (AssertionError, NotImplementedError, ValueError) as error:
        return {"refusal": f"vLLM does not serve it here: {words_of(error)}"}
    look = below_offloading if current_platform.is_cuda() else in_session
    return kept(worker) | look(config, worker, scheduler)


def words_of(error):
    """Return what is said for a person; pydantic says more around it, and an assertion nothing."""
    words = str(error).split("Value error, ")[-1].split(" [type=")[0].rstrip(".")
    return words or "an assertion of its class fails"


def kept(cache):
    """Return what a rank keeps: of which kind, in which groups, and how much for each token."""
    layers = [layer for group in cache.kv_cache_groups for layer in layers_of(group)]
    kinds = Counter(kind_of(name, spec) for name, spec in layers)
    return {
        "kinds": [f"{number} {kind}" for kind, number in kinds.items()],
        "groups": [group_bytes(group) for group in cache.kv_cache_groups],
        "token_bytes": int(sum(token_bytes(spec) for _, spec in layers)),
    }


def token_bytes(spec):
    """Return what a layer keeps for each token of the context: 0 if there is a bound to it."""
    if type(spec).__name__ not in ("FullAttentionSpec", "MLAAttentionSpec"):
        return 0
    return Fraction(getattr(spec, "real_page_size_bytes", spec.page_size_bytes), spec.block_size)


def layers_of(group):
    spec = group.kv_cache_spec
    by_layer = getattr(spec, "kv_cache_specs", None) or dict.fromkeys(group.layer_names, spec)
    return by_layer.items()


def group_bytes(group):
    """Return what one block of a group takes in all of its layers."""
    return sum(spec.page_size_bytes for _, spec in layers_of(group))


def kind_of(name, spec):
    kind = KINDS.get(type(spec).__name__, type(spec).__name__.removesuffix("Spec"))
    if "index" in name:
        return "indexer"
    size = getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None)
    return f"{kind} of {size}" if size else kind


def in_session(config, worker, scheduler):
    cache = parse_config(OPTIONS)
    refusal = why_no_session(config, worker, cache)
    if refusal is not None:
        return {"refusal": refusal}
    deployment = translate(config, scheduler, cache)
    block = deployment.block_format
    block_bytes = block.num_heads * block.num_layers * block.block_tokens * block.token_bytes
    return {
        "refusal": why_no_session(config, scheduler, cache),
        "stored_token_bytes": block_bytes * len(deployment.owners) // block.block_tokens,
    }


def below_offloading(config, worker, scheduler):
    refusals = [why_no_offloading(config, cache) for cache in (worker, scheduler)]
    apart, shared = (rows_of(config, scheduler, **more) for more in ({}, {"max_tp": 8}))
    workers = rows_of(config, worker)
    assert workers["row_bytes"] == apart["row_bytes"]
    return {
        "refusal": next(filter(None, refusals), None),
        **apart,
        "is_shared": shared["is_canonical"],
        "shared_namespace": shared["namespace"],
    }


def rows_of(config, cache, **options):
    """Return the rows of vLLM's host memory, and the namespace that they are stored under."""
    options = OPTIONS | options
    transfer = changed(config, "kv_transfer_config", kv_connector_extra_config=options)
    engine = OffloadingEngine(transfer, cache, read_options(transfer))
    offloading = build_offloading_config(translated(engine, uses_ssd=False), cache)
    spec = OffloadingSpecFactory.create_spec(offloading)
    rows = Rows(0, spec.num_chunks, spec.kv_bytes_per_chunk)
    namespace = origin_of_rows(engine, offloading, rows).blank
    return {
        "num_rows": rows.num_rows,
        "row_bytes": rows.row_bytes,
        "room_bytes": region_bytes(engine),
        "block_tokens": sorted({group.tokens_per_block for group in offloading.groups}),
        "copies": 1 if spec.replicated_layout else offloading.parallel.world_size,
        "is_canonical": bool(offloading.canonical_layout),
        "namespace": namespace.digest.hex(),
    }


def start_refusals(start):
    """Return why an engine that starts like this is not served, by each of the two ways."""
    config = configure(ARCHITECTURES[start.model].config, start.degree, **OPTIONS)
    worker, _ = cache_configs(config)
    for part, values in start.changes.items():
        config = changed(config, part, **values)
    with ExitStack() as stack:
        if start.is_rocm:
            platform = type(current_platform)
            stack.enter_context(mock.patch.object(platform, "is_rocm", return_value=True))
        if start.free_bytes is not None:
            status = mock.Mock(f_bavail=start.free_bytes, f_frsize=1)
            stack.enter_context(mock.patch.object(os, "statvfs", return_value=status))
        engine = OffloadingEngine(config, worker, parse_config(OPTIONS))
        offloading = why_no_offloading(config, worker) or why_no_room(
            "-", region_bytes(engine), row_bytes(engine)
        )
        return {
            "session": why_no_session(config, worker, parse_config(OPTIONS)),
            "offloading": offloading,
        }


def main():
    prepare()
    degrees = [int(degree) for degree in sys.argv[2].split(",")]
    for name in sys.argv[3:] or ARCHITECTURES:
        for degree in degrees:
            print(
                json.dumps({"name": name, "degree": degree, **describe(name, degree)}), flush=True
            )
    for title, start in {} if sys.argv[3:] else STARTS.items():
        say(start=title, **start_refusals(start))


def say(**row):
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
