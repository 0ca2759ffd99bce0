"""Prompts that have nothing in common."""

import random

NUM_TOKENS = 400


def prompt_of(seed: int | str, num_tokens: int = NUM_TOKENS) -> list[int]:
    """Return the same random tokens for the same seed."""
    rng = random.Random(seed)
    return [rng.randrange(1000) for _ in range(num_tokens)]


PROMPT, *OTHERS = map(prompt_of, range(8))
