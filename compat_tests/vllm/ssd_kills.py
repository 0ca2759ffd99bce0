"""Engines that are killed while they save, and what the next one finds: `ssd_kills.py --rounds 20`.

A round queues prompts nobody has seen, steps until a random part of their blocks is visible in
the SSD tier, notes which, kills the engine a random moment later, and starts another one.
"""

import argparse
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from engine_process import Ask, EngineProcess, random_tokens
from ssd_engines import connector_on, num_wrong, ready_keys, serve, serve_cold

NUM_PROMPTS = 8
PROMPT_TOKENS = 800
PROMPT_BLOCKS = PROMPT_TOKENS // 128
MAX_STEPS = 400


class Round(NamedTuple):
    """What one kill did."""

    num_visible: int
    """Blocks of all rounds that were reported as visible before the kill."""

    num_found: int
    """Those that are visible after the restart."""

    num_fresh: int
    """Of the visible ones, those of this round."""

    num_loaded_pages: int
    """Of this round's prompts."""

    num_wrong_pages: int


def play_rounds(
    start: Callable[[], EngineProcess], num_rounds: int, seed: int = 0
) -> Iterator[Round]:
    """Kill `num_rounds` engines that `start` starts on one directory."""
    rng = random.Random(seed)
    engine = start()
    before: set[str] = set()
    for number in range(num_rounds):
        first = seed + 1000 + number * NUM_PROMPTS
        prompts = [random_tokens(first + index, PROMPT_TOKENS) for index in range(NUM_PROMPTS)]
        visible = _save_some(engine, prompts, len(before), rng)
        engine.kill_in_a_run(rng.uniform(0, 0.6))
        engine.close()
        engine = start()
        engine.run()
        found = ready_keys(engine)
        loaded, wrong = _examine(engine, prompts)
        yield Round(len(visible), len(visible & found), len(visible - before), loaded, wrong)
        before = ready_keys(engine)


def _save_some(
    engine: EngineProcess, prompts: list[list[int]], num_before: int, rng: random.Random
) -> set[str]:
    """Serve prompts until some of their blocks are visible; return all that are then."""
    enough = num_before + rng.randrange(1, NUM_PROMPTS * PROMPT_BLOCKS * 3 // 4)
    for prompt in prompts:
        engine.add(Ask(prompt=prompt, max_tokens=8))
    visible: set[str] = set()
    for _ in range(MAX_STEPS):
        engine.step()
        visible = ready_keys(engine)
        if len(visible) >= enough:
            break
    return visible


def _examine(engine: EngineProcess, prompts: list[list[int]]) -> tuple[int, int]:
    """Return how many pages of `prompts` are loaded, and how many of them are wrong."""
    num_loaded = num_wrong_pages = 0
    for prompt in prompts:
        served = serve(engine, prompt)
        num_loaded += len(served.loaded_pages)
        num_wrong_pages += num_wrong(served, serve_cold(engine, prompt))
    return num_loaded, num_wrong_pages


def main() -> None:
    """Play rounds on the model `oracle` and print a line for each."""
    parser = argparse.ArgumentParser(description="Kill engines that save to SSD.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("model", type=Path, help="folder that `models.py oracle` has built")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "ssd"

        def start() -> EngineProcess:
            own = Path(tempfile.mkdtemp(dir=folder))
            connector = connector_on(directory)
            return EngineProcess(arguments.model, own, connector=connector, max_num_seqs=1)

        for played in play_rounds(start, arguments.rounds, arguments.seed):
            print(*(f"{name}={value}" for name, value in played._asdict().items()), flush=True)


if __name__ == "__main__":
    main()
