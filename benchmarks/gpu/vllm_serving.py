"""vLLM on a GPU: long prompts, new and again, without a connector, with vLLM's own, with FlexKV.

    python -m benchmarks.gpu.vllm_serving [--quick] [--json FILE] [--work FOLDER]

Batches of 8 prompts of 21,000 tokens with 1,000 new tokens each, on a model of the shape of Llama
8B with random weights. Each batch is served twice; in between, vLLM drops its own prefix cache.
Engines run one after another, as a GPU has room for one, and get the same prompts. `--quick`
serves a tiny model, on a CPU, too: see that it runs.
"""

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import rows
from benchmarks.gpu import machine
from benchmarks.rows import Row
from benchmarks.vllm_end_to_end import Contender, Engine

Batch = list[list[int]]
Config = dict[str, Any]
FIGURES = ("first_token_ms", "next_token_ms", "requests_per_minute")

TINY: Config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1024,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LLAMA_8B = TINY | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
}


class Size(NamedTuple):
    """What is served."""

    config: Config
    rounds: int
    """Batches that count; one more goes before them."""

    batch: int
    prompt_tokens: int
    new_tokens: int

    @property
    def kv_gib(self) -> int:
        """GiB of the KV of one batch, and a little more."""
        heads = 2 * self.config["num_hidden_layers"] * self.config["num_key_value_heads"]
        token_bytes = 2 * heads * self.config["head_dim"]
        num_tokens = self.batch * (self.prompt_tokens + self.new_tokens + 256)
        return 1 + num_tokens * token_bytes // 2**30


FULL = Size(LLAMA_8B, rounds=3, batch=8, prompt_tokens=21_000, new_tokens=1_000)
QUICK = Size(TINY, rounds=1, batch=2, prompt_tokens=600, new_tokens=8)


def contenders(size: Size, *, has_gpu: bool) -> list[Contender]:
    """Return who is compared; vLLM's own offloading, with or without us, is for GPUs."""
    arguments = {
        "kv_cache_memory_bytes": size.kv_gib << 30,
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "enforce_eager": not has_gpu,
        "max_model_len": size.prompt_tokens + size.new_tokens,
    }
    host_gib = 2 * size.kv_gib
    session = {"cpu_cache_gb": host_gib, "enable_gpu": has_gpu}
    on_any = {
        "none": None,
        "FlexKV": _connector("flexkv-session", session),
    }
    on_gpu = {
        "FlexKV below vLLM's": _connector("flexkv-offload", {"cpu_cache_gb": host_gib}),
        "OffloadingConnector": _connector(
            "OffloadingConnector", {"cpu_bytes_to_use": host_gib << 30}
        ),
    }
    compared = on_any | on_gpu if has_gpu else on_any
    return [Contender(name, connector, arguments) for name, connector in compared.items()]


def _connector(name: str, options: Config) -> Config:
    return {"kv_connector": name, "kv_connector_extra_config": options}


def measure(work: Path, size: Size, *, has_gpu: bool) -> Iterator[Row]:
    """Yield a row for every contender and pass; ratios are to `none`, which comes first."""
    work.mkdir(parents=True, exist_ok=True)
    batches = make_batches(size)
    base: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        model = Path(folder) / "model"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(size.config))
        for contender in contenders(size, has_gpu=has_gpu):
            for name, served in serve(model, Path(folder), contender, batches, size).items():
                row = summary(served[1:])
                shape = {"prompt_tokens": size.prompt_tokens, "requests": size.batch}
                who = {"benchmark": "gpu_vllm", "connector": contender.name, "prompts": name}
                yield who | shape | row | ratios(row, base.setdefault(name, row))


def make_batches(size: Size) -> list[Batch]:
    """Return batches of prompts that share nothing, the same ones every time."""
    rng = random.Random(1)
    vocabulary = range(2, size.config["vocab_size"])
    count = size.rounds + 1
    return [
        [rng.choices(vocabulary, k=size.prompt_tokens) for _ in range(size.batch)]
        for _ in range(count)
    ]


def serve(
    model: Path, folder: Path, contender: Contender, batches: Sequence[Batch], size: Size
) -> dict[str, list[Row]]:
    """Return what each batch took, new and again, on an engine of its own."""
    served: dict[str, list[Row]] = {"new": [], "again": []}
    engine = Engine(model, folder, contender)
    try:
        for batch in batches:
            for prompts, found in served.items():
                print(f"{contender.name}: {prompts}", flush=True)
                found.append(engine.call("serve", batch, size.new_tokens))
                if prompts == "new":
                    engine.call("forget")
    finally:
        engine.close()
    return served


def summary(served: Sequence[Row]) -> Row:
    """Return the figures of several batches: of all their requests, or of each batch."""
    samples = (
        [1e3 * s for batch in served for s in batch["first_token_s"]],
        [1e3 * s for batch in served for s in batch["next_token_s"]],
        [60 * len(batch["first_token_s"]) / batch["s"] for batch in served],
    )
    cached = statistics.median(tokens for batch in served for tokens in batch["cached_tokens"])
    figures = {"cached_tokens": cached, "rounds": len(served)}
    for name, found in zip(FIGURES, samples, strict=True):
        figures |= rows.spread(name, found)
    return figures


def ratios(row: Row, base: Row) -> Row:
    """Return the figures of `row` over those of `base`."""
    return {f"{name}_over_none": round(row[name] / base[name], 3) for name in FIGURES}


def main() -> None:
    """Measure, if there is something to measure on; print the table, and write the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="see that it runs, on a CPU, too")
    parser.add_argument("--json", type=Path, help="file to write one JSON object a row to")
    parser.add_argument("--work", type=Path, default=rows.ROOT / ".work", help="for scratch files")
    arguments = parser.parse_args()
    reason = machine.why_no_gpu()
    if reason and not arguments.quick:
        print(f"not run: no GPU ({reason})")
        return
    around = rows.circumstances() | {"vllm": version(packages_distributions()["vllm"][0])}
    around |= {} if reason else machine.circumstances()
    size = QUICK if arguments.quick else FULL
    found = measure(arguments.work.resolve(), size, has_gpu=not reason)
    measured = [row | around for row in found]
    print(rows.render(measured))
    if arguments.json:
        rows.write(arguments.json, measured)


if __name__ == "__main__":
    main()
