"""Ask a router of Dynamo's what it knows: JSON of the model and chats in, of `Known` rows out.

A program of its own: its router reads the environment of the fleet, as the frontend's did.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from dynamo.llm import KvRouter, KvRouterConfig
from dynamo.runtime import DistributedRuntime
from transformers import AutoTokenizer

SETTLE_S = 1
TIMEOUT_S = 30


async def main() -> None:
    """Print the view once it no longer changes: the last blocks may still be on their way."""
    asked = json.load(sys.stdin)
    prompts = tokenize(asked["model"], asked["chats"])
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp", event_plane="zmq")
    endpoint = runtime.endpoint(asked["endpoint"])
    router = KvRouter(endpoint, asked["block_tokens"], KvRouterConfig())
    end_s = time.monotonic() + TIMEOUT_S
    before, seen = None, await view(router, prompts)
    while time.monotonic() < end_s and (before != seen or not any(map(any, seen))):
        await asyncio.sleep(SETTLE_S)
        before, seen = seen, await view(router, prompts)
    print(json.dumps(seen))


def tokenize(model: str, chats: Sequence[Any]) -> list[list[int]]:
    """Return the prompts that the frontend makes of chats."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    return [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        for chat in chats
    ]


async def view(router: KvRouter, prompts: Sequence[list[int]]) -> list[list[dict[str, int]]]:
    """Return, per prompt and worker, the leading blocks by the first tier that has them."""
    return [
        [
            {
                "vllm": worker["device_blocks"],
                "host": worker["host_pinned_extension_blocks"],
                "ssd": worker["disk_extension_blocks"],
                "num_blocks": scores["num_blocks"],
            }
            for worker in sorted(scores["workers"], key=lambda worker: worker["worker_id"])
        ]
        for scores in [await router.get_overlap_scores(prompt) for prompt in prompts]
    ]


if __name__ == "__main__":
    asyncio.run(main())
