"""FlexKV behind real vLLM on a CPU: time to the first token, zero reuse, idle steps.

    python -m benchmarks.vllm_end_to_end [--quick] [--json FILE] [--work FOLDER]

Each configuration is an engine of its own. Those compared live at the same time and take turns, so
that a machine that drifts disturbs all; the first round does not count, no prompt is used in two.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from benchmarks import rows
from benchmarks.rows import Row
from demo.model import build_model, describe

HERE = Path(__file__).parent
KV_CACHE_BYTES = 512 << 20
DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
QUIET_S = 1.2
"""vLLM's workers spin for 1 s after their last step (0.32, `SpinCondition`)."""

FLEXKV = {"kv_connector": "flexkv", "kv_connector_extra_config": {"cpu_cache_gb": 1.0}}
TIMED = FLEXKV | {"kv_connector": "TimedConnector", "kv_connector_module_path": "timed_connector"}


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    prompt_tokens: Sequence[int]
    new_requests: int
    """Requests at a time where nothing is reused."""

    idle_requests: Sequence[int]
    """Requests that decode at a time where nothing is to be done."""


FULL = Size(rounds=8, prompt_tokens=(500, 1500, 3500, 7000), new_requests=24, idle_requests=(1, 32))
QUICK = Size(rounds=2, prompt_tokens=(500, 1500), new_requests=6, idle_requests=(1,))


class Contender(NamedTuple):
    """One configuration of vLLM."""

    name: str
    connector: Mapping[str, Any] | None
    """Its `kv_transfer_config`, but for the role."""

    engine_args: Mapping[str, Any] = MappingProxyType({})
    env: Mapping[str, str] = MappingProxyType({})


class Engine:
    """A `vllm_child` process. Ends when it is closed."""

    def __init__(self, model: Path, folder: Path, contender: Contender) -> None:
        arguments = {
            "model": str(model),
            "kv_cache_memory_bytes": KV_CACHE_BYTES,
            **contender.engine_args,
        }
        if contender.connector is not None:
            arguments["kv_transfer_config"] = {"kv_role": "kv_both", **contender.connector}
        self._log = folder / "engine.log"
        with self._log.open("w") as log:
            # From outside the checkout, as users run engines: nothing is found by accident.
            self._process = subprocess.Popen(
                [sys.executable, HERE / "vllm_child.py", json.dumps(arguments)],
                cwd=folder,
                env=_environment(contender.env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def call(self, method: str, *arguments: object) -> dict[str, Any]:
        """Call a method of the child's `Engine`; blocks until it answers.

        Raises:
            ChildProcessError: It has ended; the end of its log says why.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([method, *arguments]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise ChildProcessError(self._log.read_text()[-4000:])
        result: dict[str, Any] = json.loads(answer)
        return result

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    fixed = {
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(HERE),
        "PYTHONSAFEPATH": "1",
        # With any connector vLLM keeps one more core free, and computes with one thread less.
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return {**os.environ, **fixed, **extra}


class Workshop:
    """Makes prompts for one model, and starts engines on it; `exits` ends them."""

    def __init__(self, work: Path, exits: ExitStack) -> None:
        self.model = build_model(work, "demo")
        self._config = json.loads((self.model / "config.json").read_text())
        self._work = work
        self._random = random.Random(1)
        self._exits = exits

    def folder(self) -> Path:
        """Make an empty folder."""
        folder = tempfile.TemporaryDirectory(prefix="bench-", dir=self._work)
        return Path(self._exits.enter_context(folder))

    def engine(self, contender: Contender) -> Engine:
        """Start an engine; its first call waits until it is ready."""
        engine = Engine(self.model, self.folder(), contender)
        self._exits.callback(engine.close)
        return engine

    def prompt(self, num_tokens: int) -> list[int]:
        """Return a prompt that nobody has seen."""
        return [self._random.randrange(400) for _ in range(num_tokens)]

    def prompts(self, count: int) -> list[list[int]]:
        """Return `count` prompts of 500 to 1500 tokens that nobody has seen."""
        return [self.prompt(self._random.randint(500, 1500)) for _ in range(count)]

    def kv_bytes(self, num_tokens: int) -> int:
        """Return the size of the keys and values of `num_tokens`."""
        heads = self._config["num_hidden_layers"] * self._config["num_key_value_heads"]
        value_bytes = DTYPE_BYTES[self._config["dtype"]]
        return int(num_tokens * heads * 2 * self._config["head_dim"] * value_bytes)


def measure_first_token(workshop: Workshop, size: Size) -> Iterator[Row]:
    """Compare cold prompts, hits in vLLM's own pages, and hits that a connector loads."""
    engines = {c.name: workshop.engine(c) for c in contenders(workshop.folder())}
    visits: dict[tuple[str, int], list[Row]] = {}
    for _, name in turns(size.rounds, list(engines)):
        for num_tokens in size.prompt_tokens:
            visit = visit_three_times(engines[name], workshop, workshop.prompt(num_tokens))
            visits.setdefault((name, num_tokens), []).append(visit)
    for name, num_tokens in itertools.product(engines, size.prompt_tokens):
        counted = visits[name, num_tokens][1:]
        row = {"benchmark": "vllm_first_token", "connector": name, "prompt_tokens": num_tokens}
        for key in counted[0]:
            row |= rows.spread(key, [visit[key] for visit in counted])
        yield row


def contenders(folder: Path) -> list[Contender]:
    """Return who is compared; ExampleConnector is vLLM's own, and keeps files in `folder`."""
    # ExampleConnector stores what the first step computes: prompts must fit into one.
    long = {"max_model_len": 8192, "max_num_batched_tokens": 8192}
    sync = FLEXKV | {"kv_connector_extra_config": {"cpu_cache_gb": 1.0, "load_async": False}}
    files = {
        "kv_connector": "ExampleConnector",
        "kv_connector_extra_config": {"shared_storage_path": str(folder)},
    }
    return [
        Contender("none", None, long),
        Contender("FlexKV, async", FLEXKV, long),
        Contender("FlexKV, sync", sync, long),
        Contender("ExampleConnector", files, long | {"disable_hybrid_kv_cache_manager": True}),
    ]


def turns(rounds: int, names: list[str]) -> Iterator[tuple[int, str]]:
    """Yield (round, whose turn); another begins each round, and each finds a quiet machine."""
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            print(f"round {number} of {rounds}: {name}", file=sys.stderr, flush=True)
            time.sleep(QUIET_S)
            yield number, name


def visit_three_times(engine: Engine, workshop: Workshop, prompt: list[int]) -> Row:
    """Ask for a new prompt cold, again, and once more after vLLM's own cache was dropped."""
    cold = engine.call("first_token", prompt)
    local = engine.call("first_token", prompt)
    engine.call("forget")
    restored = engine.call("first_token", prompt)
    assert cold["cached_tokens"] == 0, "a prompt that nobody has seen was found in a cache"
    copy_s = plain_copy_s(workshop.kv_bytes(restored["cached_tokens"]))
    return {
        "cold_ms": 1e3 * cold["s"],
        "local_hit_ms": 1e3 * local["s"],
        "restored_ms": 1e3 * restored["s"],
        "plain_copy_ms": 1e3 * copy_s,
        "local_hit_tokens": local["cached_tokens"],
        "restored_tokens": restored["cached_tokens"],
        "restored_over_local_hit": restored["s"] / local["s"],
        "restored_over_budget": restored["s"] / (1.5 * local["s"] + copy_s),
    }


def plain_copy_s(num_bytes: int) -> float:
    """Return the seconds that one thread takes to copy `num_bytes` of warm memory."""
    source, target = np.ones(num_bytes, np.uint8), np.ones(num_bytes, np.uint8)
    start = time.perf_counter()
    target[:] = source
    return time.perf_counter() - start


def measure_zero_reuse(workshop: Workshop, size: Size) -> Iterator[Row]:
    """Compare the throughput of prompts that nobody has seen, with FlexKV and without."""
    with_flexkv, without = "FlexKV, async", "none"
    engines = {
        with_flexkv: workshop.engine(Contender(with_flexkv, FLEXKV)),
        without: workshop.engine(Contender(without, None)),
    }
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    batches = [workshop.prompts(size.new_requests) for _ in range(size.rounds + 1)]
    for number, name in turns(size.rounds, list(engines)):
        taken_s = engines[name].call("serve", batches[number], 16)["s"]
        speeds[name].append(sum(map(len, batches[number])) / taken_s)
    pairs = zip(speeds[with_flexkv][1:], speeds[without][1:], strict=True)
    yield {
        "benchmark": "vllm_zero_reuse",
        "requests": size.new_requests,
        **rows.spread("none_prompt_tokens_s", speeds[without][1:]),
        **rows.spread("flexkv_prompt_tokens_s", speeds[with_flexkv][1:]),
        **rows.spread("loss_percent", [100 * (1 - ours / none) for ours, none in pairs]),
    }


def measure_idle_steps(workshop: Workshop, size: Size) -> Iterator[Row]:
    """Time the hooks of steps that decode within a block: nothing to load, nothing to save."""
    in_one_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    engine = workshop.engine(Contender("timed", TIMED, env=in_one_process))
    for num_requests in size.idle_requests:
        rounds = []
        for _ in range(size.rounds + 1):
            engine.call("serve", [workshop.prompt(16) for _ in range(num_requests)], 100)
            rounds.append(engine.call("take_steps"))
        for half in rounds[0]:
            medians_us = [1e6 * statistics.median(steps[half]) for steps in rounds[1:]]
            yield {
                "benchmark": "vllm_idle_step",
                "half": half,
                "running_requests": num_requests,
                **rows.spread("us_per_step", medians_us),
            }


def measure(work: Path, size: Size) -> Iterator[Row]:
    """Yield all rows, each with its circumstances."""
    work.mkdir(parents=True, exist_ok=True)
    around = rows.circumstances() | {"vllm": version(packages_distributions()["vllm"][0])}
    for subject in (measure_first_token, measure_zero_reuse, measure_idle_steps):
        with ExitStack() as exits:
            workshop = Workshop(work, exits)
            around |= {"model": describe(workshop.model), "rounds": size.rounds}
            yield from (row | around for row in subject(workshop, size))


def main() -> None:
    """Measure, print the tables, and write the rows where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="see that it runs")
    parser.add_argument("--json", type=Path, help="file to write one JSON object a row to")
    parser.add_argument("--work", type=Path, default=rows.ROOT / ".work", help="for scratch files")
    arguments = parser.parse_args()
    measured = list(measure(arguments.work.resolve(), QUICK if arguments.quick else FULL))
    for _, table in itertools.groupby(measured, key=lambda row: row["benchmark"]):
        print(rows.render(list(table)), end="\n\n")
    if arguments.json:
        rows.write(arguments.json, measured)


if __name__ == "__main__":
    main()
