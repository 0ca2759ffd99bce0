"""Run a prompt twice in TensorRT-LLM, the second time from host memory: `... MODEL`.

MODEL is a local folder, or a hub id that is on this machine. It needs a GPU. Nobody has run this
yet: the connector is tested against the engine's interface, not in the engine.
"""

import os
import sys

os.environ.setdefault("FLEXKV_CPU_CACHE_GB", "8")
os.environ.setdefault("FLEXKV_ENABLE_GPU", "true")  # FlexKV has not run on a GPU yet: ask for it

from tensorrt_llm import LLM, SamplingParams
from tensorrt_llm.llmapi import KvCacheConfig, KvCacheConnectorConfig

TEXT = "The cache keeps what the engine would otherwise compute again. "


def main(model: str) -> None:
    """Ask about one text, push it out of the engine's own cache, and ask again."""
    llm = LLM(
        model,
        kv_cache_config=KvCacheConfig(enable_partial_reuse=False, max_tokens=8192),
        kv_connector_config=KvCacheConnectorConfig(
            connector_module="flexkv_connectors.tensorrt_llm",
            connector_scheduler_class="FlexKVScheduler",
            connector_worker_class="FlexKVWorker",
        ),
    )
    sampling = SamplingParams(temperature=0, max_tokens=16)
    prompt = TEXT * 200 + "Why?"
    others = [f"{number}. {TEXT * 200}" for number in range(8)]
    for occasion in ("first time", "from host memory"):
        [output] = llm.generate([prompt], sampling, use_tqdm=False)
        print(f"{occasion}: {output.outputs[0].text!r}")
        llm.generate(others, sampling, use_tqdm=False)


if __name__ == "__main__":  # TensorRT-LLM starts its processes by importing this file again
    main(sys.argv[1])
