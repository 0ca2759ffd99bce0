"""Run a prompt twice in SGLang, the second time from SSD: `sglang_offline.py [MODEL]`.

Without a model, a tiny one with random weights is made in a temporary folder. Run it outside the
checkout, as any program that uses the installed package. Without a GPU, SGLang's wheel wants what
our tests stand in for: have `compat_tests/sglang/stand_ins` in PYTHONPATH.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import sglang
import torch

BUILDER = Path(__file__).parents[1] / "compat_tests/models.py"
TEXT = "The cache keeps what the engine would otherwise compute again. "
ON_A_CPU = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
    "max_total_tokens": 8192,
    "hicache_io_backend": "direct",
    "hicache_mem_layout": "page_first_direct",
}
PATIENCE = 10


def main(model: str, directory: str) -> None:
    """Ask a question, let SGLang forget it, and ask again until it has come from SSD."""
    engine = sglang.Engine(
        model_path=model,
        dtype="float32",
        page_size=64,
        enable_hierarchical_cache=True,
        hicache_storage_backend="dynamic",
        hicache_storage_prefetch_policy="wait_complete",
        hicache_storage_backend_extra_config=json.dumps(flexkv(directory)),
        **({} if torch.cuda.is_available() else ON_A_CPU),
    )
    ask("first time", engine)
    for _ in range(PATIENCE):  # SGLang answers first, and stores then
        engine.flush_cache()
        if ask("from SSD", engine):
            break
    engine.shutdown()


def flexkv(directory: str) -> dict[str, object]:
    """Return what makes FlexKV the storage below HiCache, with its files in `directory`."""
    return {
        "backend_name": "flexkv",
        "module_path": "flexkv_connectors.sglang.storage",
        "class_name": "FlexKVHiCacheStorage",
        "interface_v1": 1,
        "hicache_storage_pass_prefix_keys": True,
        "ssd_cache_gb": 1,
        "ssd_cache_dir": directory,
    }


def ask(occasion: str, engine: sglang.Engine) -> int:
    """Print how an answer came about; return how many tokens of the prompt storage has given."""
    sampling = {"temperature": 0, "max_new_tokens": 16, "ignore_eos": True}
    answer = engine.generate(TEXT * 100 + "Why?", sampling)
    about = answer["meta_info"]
    num_stored = (about.get("cached_tokens_details") or {}).get("storage", 0)
    print(f"{occasion}: {num_stored} of {about['prompt_tokens']} tokens")
    print(f"  answer: {answer['output_ids']}")
    return int(num_stored)


def make_model(folder: str) -> str:
    """Return the folder of a tiny model made in `folder`."""
    command = [sys.executable, BUILDER, "demo", folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":  # SGLang starts its processes by importing this file again
    with tempfile.TemporaryDirectory() as folder:
        model = sys.argv[1] if len(sys.argv) > 1 else make_model(folder)
        main(model, directory=f"{folder}/ssd")
