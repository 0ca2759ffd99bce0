"""Dynamo's own worker and router around one stream of events: run by `kv_router.KvRouterProcess`.

The worker relays the events to the router over Dynamo's event plane and serves nothing. Reads one
JSON object a line as `json_child` says, each with the tokens of a prompt, and answers with the
blocks that the router counts.
"""

import asyncio
import json
import os
import sys

from dynamo.llm import (
    KvEventPublisher,
    KvRouter,
    KvRouterConfig,
    ModelInput,
    ModelRuntimeConfig,
    ModelType,
    WorkerType,
    register_model,
)
from dynamo.runtime import DistributedRuntime, Endpoint


async def serve_nothing(_request):
    """Answer a request, of which there is none."""
    yield {}


async def register(endpoint: Endpoint, page_tokens: int) -> None:
    """Let a router know of the worker."""
    config = ModelRuntimeConfig()
    config.total_kv_blocks = config.max_num_batched_tokens = 1024
    config.max_num_seqs = 4
    config.enable_local_indexer = config.kv_event_publishing_enabled = True
    await register_model(
        ModelInput.Tokens,
        ModelType.Chat,
        endpoint,
        "tiny",
        "tiny",
        worker_type=WorkerType.Aggregated,
        kv_cache_block_size=page_tokens,
        runtime_config=config,
        skip_model_assets=True,
    )


async def run(events: str, page_tokens: int, pipes: tuple[int, int]) -> None:
    """Answer until the other side closes the pipe."""
    loop = asyncio.get_running_loop()
    endpoint = DistributedRuntime(loop, "file", "tcp", event_plane="zmq").endpoint("a.b.generate")
    relay = KvEventPublisher(
        endpoint, kv_block_size=page_tokens, zmq_endpoint=events, enable_local_indexer=True
    )
    serving = asyncio.ensure_future(endpoint.serve_endpoint(serve_nothing))
    await register(endpoint, page_tokens)
    router = KvRouter(endpoint, page_tokens, KvRouterConfig())
    with os.fdopen(pipes[0]) as lines, os.fdopen(pipes[1], "w") as answers:
        while line := await loop.run_in_executor(None, lines.readline):
            asked = json.loads(line)["with"]
            told = await router.get_overlap_scores(asked["tokens"], lora_name=asked["lora_name"])
            print(json.dumps(told["workers"]), file=answers, flush=True)
    serving.cancel()
    del relay


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], int(sys.argv[2]), (int(sys.argv[3]), int(sys.argv[4]))))
