"""Run a prompt twice in vLLM, the second time from host memory: `vllm_offline.py [MODEL]`.

Without a model, a tiny one with random weights is made in a temporary folder. Run it outside the
checkout, as any program that uses the installed package.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.config import KVTransferConfig

BUILDER = Path(__file__).parents[1] / "compat_tests/models.py"
TEXT = "The cache keeps what the engine would otherwise compute again. "


def main(model: str) -> None:
    """Ask the same question twice; in between, vLLM forgets its own prefix cache."""
    llm = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=4096,
        kv_cache_memory_bytes=1 << 30,  # vLLM's own cache; on a CPU it would take nearly all memory
        kv_transfer_config=KVTransferConfig(kv_connector="flexkv", kv_role="kv_both"),
    )
    sampling = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    prompt = TEXT * 100 + "Why?"
    for occasion in ("first time", "from host memory"):
        [output] = llm.generate([prompt], sampling, use_tqdm=False)
        print(f"{occasion}: {output.num_cached_tokens} of {len(output.prompt_token_ids)} tokens")
        print(f"  answer: {output.outputs[0].token_ids}")
        llm.reset_prefix_cache()


def make_model(folder: str) -> str:
    """Return the folder of a tiny model made in `folder`."""
    command = [sys.executable, BUILDER, "demo", folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":  # vLLM starts its processes by importing this file again
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(make_model(folder))
