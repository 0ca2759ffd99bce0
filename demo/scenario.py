"""What is shown, in this order, and what must be true of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from demo.client import Answer, Client, Message
from demo.conversation import chat
from demo.server import BLOCK_TOKENS, DemoError

ANSWER_TOKENS = 24
METRICS_TIMEOUT_S = 20

COLD = "First time"
LOCAL = "Same chat again"
HOST = "vLLM's cache dropped"
SHARED = "Dropped, another question"
SALTED = "Another cache salt"
STEPS = (COLD, LOCAL, HOST, SHARED, SALTED)

COMPUTED, FROM_VLLM, FROM_HOST = "computed", "vLLM's prefix cache", "FlexKV, host memory"
HITS = {
    'vllm:prompt_tokens_by_source_total{source="local_cache_hit"}': FROM_VLLM,
    'vllm:prompt_tokens_by_source_total{source="external_kv_transfer"}': FROM_HOST,
}
LOADED_BYTES = "flexkv:load_bytes_total"
SAVED_TOKENS = "flexkv:save_tokens_total"

Counts = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One request: what the client saw, and what `/metrics` says about it."""

    answer: Answer
    source: str
    loaded_bytes: int


def run_round(
    client: Client, document: int, token_bytes: int, say: Callable[[str], None]
) -> dict[str, Measurement]:
    """Go through all steps with one document and check what they show.

    Args:
        client: Of a running server.
        document: Number of a document that this server has not seen.
        token_bytes: Size of the KV of one token over all layers.
        say: Takes a line of progress.

    Raises:
        DemoError: Something shown is not true.
    """
    first, second = chat(document, 0), chat(document, 1)
    shown: dict[str, Measurement] = {}

    def show(step: str, messages: Sequence[Message], salt: str = "") -> None:
        shown[step] = _measure(client, messages, salt)
        say(_line(step, shown[step]))

    saved_tokens = client.metrics().get(SAVED_TOKENS, 0)
    show(COLD, first)
    show(LOCAL, first)
    saved_tokens += _whole_blocks(shown[COLD].answer.prompt_tokens)
    _wait_for_count(client, lambda now: now.get(SAVED_TOKENS, 0) >= saved_tokens)
    client.drop_engine_cache()
    show(HOST, first)
    client.drop_engine_cache()
    show(SHARED, second)
    show(SALTED, second, salt=f"tenant {document}")
    _check_sources(shown, _shared_tokens(client, first, second), token_bytes)
    _check_answers({step: shown[step].answer.text for step in STEPS})
    return shown


def _measure(client: Client, messages: Sequence[Message], salt: str) -> Measurement:
    before = client.metrics()
    answer = client.chat(messages, ANSWER_TOKENS, salt)
    after = _wait_for_count(
        client, lambda now: sum(_hits(before, now).values()) >= answer.cached_tokens
    )
    source = " + ".join(source for source, tokens in _hits(before, after).items() if tokens)
    return Measurement(
        answer, source or COMPUTED, int(after.get(LOADED_BYTES, 0) - before.get(LOADED_BYTES, 0))
    )


def _hits(before: Counts, after: Counts) -> dict[str, float]:
    """Return the prompt tokens that came from each cache in between."""
    return {source: after.get(name, 0) - before.get(name, 0) for name, source in HITS.items()}


def _wait_for_count(client: Client, is_reached: Callable[[Counts], bool]) -> Counts:
    """Return the metrics as soon as they satisfy `is_reached`: they trail what happened.

    Raises:
        DemoError: They do not within `METRICS_TIMEOUT_S`.
    """
    end_s = time.monotonic() + METRICS_TIMEOUT_S
    while not is_reached(counts := client.metrics()):
        if time.monotonic() > end_s:
            ours = {name: count for name, count in counts.items() if name.startswith("flexkv:")}
            msg = f"an answer's KV was not saved and counted in {METRICS_TIMEOUT_S} s: {ours}"
            raise DemoError(msg)
        time.sleep(0.05)
    return counts


def _check_sources(shown: Mapping[str, Measurement], shared_tokens: int, token_bytes: int) -> None:
    """Raise unless every prefix came from where its step says, whole."""
    # The last token of a prompt is always computed, for its logits.
    prompt_tokens = shown[COLD].answer.prompt_tokens - 1
    expected = {
        COLD: (COMPUTED, 0),
        LOCAL: (FROM_VLLM, _whole_blocks(prompt_tokens)),
        HOST: (FROM_HOST, _whole_blocks(prompt_tokens)),
        SHARED: (FROM_HOST, _whole_blocks(shared_tokens)),
        SALTED: (COMPUTED, 0),
    }
    for step, (source, tokens) in expected.items():
        right = source, tokens, tokens * token_bytes if source == FROM_HOST else 0
        got = shown[step].source, shown[step].answer.cached_tokens, shown[step].loaded_bytes
        if got != right:
            msg = f"'{step}' had (source, cached tokens, loaded bytes) {got}, expected {right}"
            raise DemoError(msg)


def _check_answers(texts: Mapping[str, str]) -> None:
    """Raise unless a cached prefix gives the answer of a computed one."""
    if not texts[COLD] == texts[LOCAL] == texts[HOST]:
        msg = f"one prompt got several answers: {[texts[step] for step in (COLD, LOCAL, HOST)]}"
        raise DemoError(msg)
    if texts[SHARED] != texts[SALTED]:
        msg = f"one prompt got two answers: {[texts[step] for step in (SHARED, SALTED)]}"
        raise DemoError(msg)
    if texts[COLD] == texts[SHARED]:
        msg = f"two prompts got one answer, so equal answers prove nothing: {texts[COLD]!r}"
        raise DemoError(msg)


def _shared_tokens(client: Client, first: Sequence[Message], second: Sequence[Message]) -> int:
    """Count the leading tokens that two prompts have in common."""
    pairs = zip(client.tokenize(first), client.tokenize(second), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _whole_blocks(num_tokens: int) -> int:
    return num_tokens // BLOCK_TOKENS * BLOCK_TOKENS


def _line(step: str, shown: Measurement) -> str:
    answer = shown.answer
    cached = f"{answer.cached_tokens:5} of {answer.prompt_tokens} tokens cached"
    return f"  {step:<26} {1000 * answer.ttft_s:6.0f} ms  {cached}  {shown.source}"
