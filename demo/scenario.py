"""What is shown, in this order, and what must be true of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from demo.client import Answer, Client, Message
from demo.conversation import chat
from demo.server import DemoError

ANSWER_TOKENS = 24
SETTLE_TIMEOUT_S = 20
BLOCK_TOKENS = 128
"""vLLM's page on a CPU, and so ours: a hit ends at a multiple of it."""

COLD = "cold"
LOCAL = "again: vLLM's own prefix cache"
HOST = "vLLM's cache dropped: host memory"
SHARED = "second user, same document"
SALTED = "the same under another cache salt"
STEPS = (COLD, LOCAL, HOST, SHARED, SALTED)

COMPUTED, FROM_VLLM, FROM_HOST = "computed", "vLLM's prefix cache", "FlexKV, host memory"
SOURCES = {"local_cache_hit": FROM_VLLM, "external_kv_transfer": FROM_HOST}


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

    saved_before = client.metrics().get("flexkv:save_tokens_total", 0)
    show(COLD, first)
    show(LOCAL, first)
    _wait_for_save(client, saved_before + _whole_blocks(shown[COLD].answer.prompt_tokens))
    client.drop_engine_cache()
    show(HOST, first)
    client.drop_engine_cache()
    show(SHARED, second)
    show(SALTED, second, salt=f"tenant {document}")
    _check(shown, _shared_tokens(client, first, second), token_bytes)
    return shown


def _measure(client: Client, messages: Sequence[Message], salt: str) -> Measurement:
    before = client.metrics()
    answer = client.chat(messages, ANSWER_TOKENS, salt)
    end_s = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        after = client.metrics()
        grown = {name: value - before.get(name, 0) for name, value in after.items()}
        tokens = {
            source: grown.get(f'vllm:prompt_tokens_by_source_total{{source="{label}"}}', 0)
            for label, source in SOURCES.items()
        }
        # The counters trail the answer by a moment.
        if sum(tokens.values()) >= answer.cached_tokens or time.monotonic() > end_s:
            break
        time.sleep(0.05)
    source = " + ".join(source for source, count in tokens.items() if count) or COMPUTED
    return Measurement(answer, source, int(grown.get("flexkv:load_bytes_total", 0)))


def _wait_for_save(client: Client, num_tokens: float) -> None:
    """Return once `num_tokens` have been saved since the server started."""
    end_s = time.monotonic() + SETTLE_TIMEOUT_S
    while client.metrics().get("flexkv:save_tokens_total", 0) < num_tokens:
        if time.monotonic() > end_s:
            msg = f"the chat's KV did not reach host memory within {SETTLE_TIMEOUT_S} s"
            raise DemoError(msg)
        time.sleep(0.05)


def _check(shown: dict[str, Measurement], shared_tokens: int, token_bytes: int) -> None:
    """Raise unless every step shows what it claims to show."""
    prompt_tokens = shown[COLD].answer.prompt_tokens
    expected = {
        COLD: (0, COMPUTED),
        LOCAL: (_whole_blocks(prompt_tokens), FROM_VLLM),
        HOST: (_whole_blocks(prompt_tokens), FROM_HOST),
        SHARED: (_whole_blocks(shared_tokens), FROM_HOST),
        SALTED: (0, COMPUTED),
    }
    for step, (tokens, source) in expected.items():
        loaded_bytes = tokens * token_bytes if source == FROM_HOST else 0
        got = shown[step].answer.cached_tokens, shown[step].source, shown[step].loaded_bytes
        if got != (tokens, source, loaded_bytes):
            msg = f"'{step}' had cached tokens, source and bytes {got}, expected "
            raise DemoError(msg + str((tokens, source, loaded_bytes)))
    _check_answers({step: shown[step].answer.text for step in STEPS})


def _check_answers(texts: dict[str, str]) -> None:
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
    """Round down to blocks; the last token is always computed, for its logits."""
    return (num_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS


def _line(step: str, measurement: Measurement) -> str:
    answer = measurement.answer
    cached = f"{answer.cached_tokens:5} of {answer.prompt_tokens} tokens cached"
    return f"  {step:<35} {1000 * answer.ttft_s:6.0f} ms  {cached}  {measurement.source}"
