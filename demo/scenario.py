"""What is shown, in this order, and what must be true of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from demo.client import Answer, Client, Message
from demo.conversation import chat
from demo.process import DemoError
from demo.server import BLOCK_TOKENS

ANSWER_TOKENS = 24
METRICS_TIMEOUT_S = 20

COLD = "First time"
LOCAL = "Same chat again"
HOST = "vLLM's cache dropped"
SHARED = "Dropped, another question"
SALTED = "Another cache salt"
KILLED = "Killed, started again"
FLIPPED = "Bytes flipped on disk"
STEPS = (COLD, LOCAL, HOST, SHARED, SALTED, KILLED, FLIPPED)
ONE_PROMPT = (COLD, LOCAL, HOST, KILLED, FLIPPED)

COMPUTED = "computed"
FROM_VLLM = "vLLM's prefix cache"
FROM_HOST = "FlexKV, host memory"
FROM_SSD = "FlexKV, SSD"

LOCAL_TOKENS = 'vllm:prompt_tokens_by_source_total{source="local_cache_hit"}'
EXTERNAL_TOKENS = 'vllm:prompt_tokens_by_source_total{source="external_kv_transfer"}'
SSD_TOKENS = "flexkv:ssd_load_tokens_total"
LOADED_BYTES = "flexkv:load_bytes_total"
CORRUPT_BLOCKS = "flexkv:ssd_corrupt_blocks_total"
SAVED_TOKENS = "flexkv:save_tokens_total"
DEMOTED_BLOCKS = "flexkv:demoted_blocks_total"
RESTORED_BLOCKS = "flexkv:restored_blocks_total"

Counts = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One request: what the client saw, and what `/metrics` says about it."""

    answer: Answer
    source: str
    loaded_bytes: int
    corrupt_blocks: int = 0


class Round:
    """All steps with one document, and the checks of what they show."""

    def __init__(self, document: int, token_bytes: int, say: Callable[[str], None]) -> None:
        """Choose the prompts.

        Args:
            document: Number of a document that no server has seen.
            token_bytes: Size of the KV of one token over all layers.
            say: Takes a line of progress.
        """
        self.shown: dict[str, Measurement] = {}
        self._first, self._second = chat(document, 0), chat(document, 1)
        self._salt = f"tenant {document}"
        self._token_bytes = token_bytes
        self._say = say
        self._shared_tokens = 0

    def begin(self, client: Client) -> None:
        """Go through the steps before the server is killed; all that was saved is on SSD then.

        Raises:
            DemoError: Something shown is not true.
        """
        self._shared_tokens = _shared_tokens(client, self._first, self._second)
        saved_tokens = client.metrics().get(SAVED_TOKENS, 0)
        self._show(client, COLD, self._first)
        self._show(client, LOCAL, self._first)
        saved_tokens += _whole_blocks(self._prompt_tokens(COLD))
        _wait_for(client, "saved", lambda now: now.get(SAVED_TOKENS, 0) >= saved_tokens)
        client.drop_engine_cache()
        self._show(client, HOST, self._first)
        client.drop_engine_cache()
        self._show(client, SHARED, self._second)
        self._show(client, SALTED, self._second, self._salt)
        self._check()
        # Of the second question, all is saved once more for the tenant, and the end for all.
        saved_tokens += 2 * _whole_blocks(self._prompt_tokens(SALTED))
        saved_tokens -= _whole_blocks(self._shared_tokens)
        _wait_for(client, "saved", lambda now: now.get(SAVED_TOKENS, 0) >= saved_tokens)
        _wait_for(
            client, "on SSD", lambda now: now.get(DEMOTED_BLOCKS, 0) >= saved_tokens // BLOCK_TOKENS
        )

    def repeat(self, client: Client, step: str) -> None:
        """Ask the first question of a server that was started again.

        Raises:
            DemoError: Something shown is not true.
        """
        self._show(client, step, self._first)
        self._check()

    def _show(self, client: Client, step: str, messages: Sequence[Message], salt: str = "") -> None:
        self.shown[step] = _measure(client, messages, salt)
        self._say(_line(step, self.shown[step]))

    def _prompt_tokens(self, step: str) -> int:
        return self.shown[step].answer.prompt_tokens

    def _check(self) -> None:
        _check_sources(self.shown, self._shared_tokens, self._token_bytes)
        _check_answers({step: shown.answer.text for step, shown in self.shown.items()})


def blocks_on_ssd(client: Client) -> int:
    """Return how many blocks a server has copied to SSD."""
    return int(client.metrics()[DEMOTED_BLOCKS])


def wait_until_found(client: Client, num_blocks: int) -> None:
    """Return when a server that was started again has found `num_blocks` blocks on SSD.

    Raises:
        DemoError: It has not within `METRICS_TIMEOUT_S`.
    """
    _wait_for(client, "found on SSD", lambda now: now.get(RESTORED_BLOCKS, 0) >= num_blocks)


def _measure(client: Client, messages: Sequence[Message], salt: str) -> Measurement:
    before = client.metrics()
    answer = client.chat(messages, ANSWER_TOKENS, salt)
    after = _wait_for(
        client, "counted", lambda now: sum(_hits(before, now).values()) >= answer.cached_tokens
    )
    source = " + ".join(source for source, tokens in _hits(before, after).items() if tokens)
    return Measurement(
        answer,
        source or COMPUTED,
        int(_growth(LOADED_BYTES, before, after)),
        int(_growth(CORRUPT_BLOCKS, before, after)),
    )


def _hits(before: Counts, after: Counts) -> dict[str, float]:
    """Return the prompt tokens that came from each cache in between."""
    ssd_tokens = _growth(SSD_TOKENS, before, after)
    return {
        FROM_VLLM: _growth(LOCAL_TOKENS, before, after),
        FROM_HOST: _growth(EXTERNAL_TOKENS, before, after) - ssd_tokens,
        FROM_SSD: ssd_tokens,
    }


def _growth(name: str, before: Counts, after: Counts) -> float:
    return after.get(name, 0) - before.get(name, 0)


def _wait_for(client: Client, what: str, is_reached: Callable[[Counts], bool]) -> Counts:
    """Return the metrics as soon as they satisfy `is_reached`: they trail what happened.

    Raises:
        DemoError: They do not within `METRICS_TIMEOUT_S`.
    """
    end_s = time.monotonic() + METRICS_TIMEOUT_S
    while not is_reached(counts := client.metrics()):
        if time.monotonic() > end_s:
            ours = {name: count for name, count in counts.items() if name.startswith("flexkv:")}
            msg = f"not all KV was {what} within {METRICS_TIMEOUT_S} s: {ours}"
            raise DemoError(msg)
        time.sleep(0.05)
    return counts


def _check_sources(shown: Mapping[str, Measurement], shared_tokens: int, token_bytes: int) -> None:
    """Raise unless every prefix came from where its step says, whole."""
    # The last token of a prompt is always computed, for its logits.
    prompt_tokens = _whole_blocks(shown[COLD].answer.prompt_tokens - 1)
    expected = {
        COLD: (COMPUTED, 0, 0),
        LOCAL: (FROM_VLLM, prompt_tokens, 0),
        HOST: (FROM_HOST, prompt_tokens, 0),
        SHARED: (FROM_HOST, _whole_blocks(shared_tokens), 0),
        SALTED: (COMPUTED, 0, 0),
        KILLED: (FROM_SSD, prompt_tokens, 0),
        FLIPPED: (COMPUTED, 0, 1),
    }
    for step, one in shown.items():
        source, tokens, corrupt_blocks = expected[step]
        loaded_bytes = tokens * token_bytes if source in (FROM_HOST, FROM_SSD) else 0
        right = source, tokens, loaded_bytes, corrupt_blocks
        got = one.source, one.answer.cached_tokens, one.loaded_bytes, one.corrupt_blocks
        if got != right:
            what = "source, cached tokens, loaded bytes, corrupt blocks"
            msg = f"'{step}' had ({what}) {got}, expected {right}"
            raise DemoError(msg)


def _check_answers(texts: Mapping[str, str]) -> None:
    """Raise unless a cached prefix gives the answer of a computed one."""
    answers = {step: texts[step] for step in ONE_PROMPT if step in texts}
    if len(set(answers.values())) > 1:
        msg = f"one prompt got several answers: {answers}"
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
