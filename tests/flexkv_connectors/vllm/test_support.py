"""What a request of vLLM asks of all its tokens, without vLLM."""

from types import SimpleNamespace

import pytest

from flexkv_connectors.vllm.support import why_not_skip


def request(sampling=None, pooling=None, *, skips=False):
    return SimpleNamespace(
        sampling_params=sampling and SimpleNamespace(**sampling),
        pooling_params=pooling and SimpleNamespace(**pooling),
        skip_reading_prefix_cache=skips,
    )


NOTHING = {"prompt_logprobs": None}


@pytest.mark.parametrize(
    "harmless",
    [
        request(NOTHING),
        request(NOTHING | {"prompt_logprob_token_ids": None}),
        request(pooling={"task": "embed"}),
        request(pooling={"task": "classify"}),
    ],
)
def test_a_request_that_wants_the_last_token_only_may_skip_others(harmless):
    assert why_not_skip(harmless) is None


@pytest.mark.parametrize(
    ("asking", "reason"),
    [
        (request({"prompt_logprobs": 0}), "log probabilities of its prompt"),
        (request(NOTHING | {"prompt_logprob_token_ids": [[1]]}), "log probabilities of its prompt"),
        (request(pooling={"task": "token_embed"}), "token_embed reads every token"),
        (request(pooling={"task": "token_classify"}), "token_classify reads every token"),
        (request(pooling={"task": "embed&token_classify"}), "reads every token"),
        (request(pooling={"task": "plugin"}), "plugin reads every token"),
        (request(pooling={"task": "of_tomorrow"}), "of_tomorrow reads every token"),
        (request(NOTHING, skips=True), "read no cache"),
    ],
)
def test_a_request_that_wants_more_skips_nothing(asking, reason):
    assert reason in why_not_skip(asking)
