"""What one fleet showed, and what must be true of two."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from demo.dynamo.chats import Turn
from demo.process import DemoError

MIN_RATIO = 1.25
"""By which KV-aware routing must beat round-robin in hit tokens."""

SOURCE = "vllm:prompt_tokens_by_source_total{"
FROM_VLLM = "local_cache_hit"
FROM_FLEXKV = "external_kv_transfer"


class Known(NamedTuple):
    """Leading blocks of a prompt on one worker, by the first tier that has them."""

    vllm: int
    host: int
    ssd: int
    num_blocks: int
    """Of the prompt."""


@dataclass(frozen=True, slots=True)
class Shown:
    """All turns over one fleet."""

    routing: str
    turns: Sequence[Turn]
    vllm_tokens: int
    flexkv_tokens: int

    @property
    def hit_tokens(self) -> int:
        """Prompt tokens that were not computed."""
        return sum(turn.answer.cached_tokens for turn in self.turns)

    @property
    def prompt_tokens(self) -> int:
        """All of them."""
        return sum(turn.answer.prompt_tokens for turn in self.turns)

    @property
    def ttft_s(self) -> float:
        """Median time to the first token of the users who came back."""
        return median(turn.answer.ttft_s for turn in self.turns if turn.number)


def tokens_from(source: str, metrics: Sequence[Mapping[str, float]]) -> int:
    """Return the prompt tokens that all workers took from one source."""
    return int(
        sum(
            value
            for worker in metrics
            for name, value in worker.items()
            if name.startswith(SOURCE) and f'source="{source}"' in name
        )
    )


def check(kv: Shown, round_robin: Shown, known: Sequence[Sequence[Known]]) -> None:
    """Raise unless all that the demo shows is true.

    Raises:
        DemoError: Something is not.
    """
    for shown in (kv, round_robin):
        counted = shown.vllm_tokens + shown.flexkv_tokens
        if counted != shown.hit_tokens:
            msg = f"{shown.routing}: clients saw {shown.hit_tokens} hit tokens, workers {counted}"
            raise DemoError(msg)
    _check_answers(kv.turns, round_robin.turns)
    if not any(worker.host + worker.ssd for chat in known for worker in chat):
        raise DemoError("the router knows nothing of FlexKV's tiers")
    if kv.hit_tokens < MIN_RATIO * round_robin.hit_tokens:
        msg = (
            f"KV-aware routing hit {kv.hit_tokens} tokens, round-robin {round_robin.hit_tokens}: "
            f"not {MIN_RATIO} times as many"
        )
        raise DemoError(msg)


def _check_answers(kv: Sequence[Turn], round_robin: Sequence[Turn]) -> None:
    """Raise unless every question got one answer, wherever its prefix came from."""
    for one, other in zip(kv, round_robin, strict=True):
        if one.answer.text != other.answer.text:
            texts = one.answer.text, other.answer.text
            msg = f"user {one.user + 1} got two answers in turn {one.number + 1}: {texts}"
            raise DemoError(msg)
