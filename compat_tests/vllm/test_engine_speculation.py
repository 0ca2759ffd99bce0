"""Each kind of speculation that vLLM has on a CPU, and what of a prompt is hit with it.

A method whose draft layers keep KV loses the last block: they have not finished it when it is
saved. One that drafts otherwise loses nothing. EAGLE-3 does not run in vLLM 0.32 on a CPU: the
target's layers are not told what to hand over.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import pytest
from engine_checks import PAGE_TOKENS
from engine_process import Ask, random_tokens

PROMPT = random_tokens(1, 700)
ASK = Ask(prompt=PROMPT)
WHOLE_TOKENS = 640
ALL_BUT_ONE_BLOCK = WHOLE_TOKENS - PAGE_TOKENS


class Kind(NamedTuple):
    method: str
    hit_tokens: int
    drafter: str = ""
    """A model of `models.py`."""

    model: str = "oracle"
    others: Mapping[str, object] = MappingProxyType({})
    num_drafts: int = 2
    drafts_as_the_model: bool = False
    """Then its drafts are accepted, and refused if draft layers miss KV behind a hit."""


WITNESSES = [
    Kind("ngram", WHOLE_TOKENS, others={"prompt_lookup_min": 1, "prompt_lookup_max": 2}),
    Kind("draft_model", ALL_BUT_ONE_BLOCK, "oracle", drafts_as_the_model=True),
]
MORE = [
    Kind("medusa", WHOLE_TOKENS, "medusa"),
    Kind("eagle", ALL_BUT_ONE_BLOCK, "eagle"),
    Kind("mtp", ALL_BUT_ONE_BLOCK, model="mtp", num_drafts=1),
    Kind("custom_class", ALL_BUT_ONE_BLOCK, others={"model": "drafter.Repeater"}),
]
KINDS = WITNESSES + [pytest.param(kind, marks=pytest.mark.nightly) for kind in MORE]


@pytest.fixture(scope="module")
def start(model, start_engine):
    def start(kind):
        speculation = {
            "method": kind.method,
            "num_speculative_tokens": kind.num_drafts,
            **kind.others,
        }
        if kind.drafter:
            speculation["model"] = str(model(kind.drafter))
        connector = {"kv_connector": "flexkv", "kv_connector_extra_config": {"cpu_cache_gb": 0.1}}
        return start_engine(kind.model, connector=connector, speculative_config=speculation)

    return start


def counted(engine, what):
    return engine.metrics()[f"vllm:spec_decode_num_{what}_total"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.method)
def test_a_prompt_is_hit_as_far_as_all_its_layers_have_computed_it(start, kind):
    engine = start(kind)
    (cold,) = engine.complete(ASK)
    engine.forget()
    (warm,) = engine.complete(ASK)

    assert (cold.num_cached_tokens, warm.num_cached_tokens) == (0, kind.hit_tokens)
    assert cold.tokens == warm.tokens
    assert len(set(warm.tokens)) > 8
    assert counted(engine, "drafts") > 0
    if kind.drafts_as_the_model:
        assert counted(engine, "accepted_tokens") == counted(engine, "draft_tokens")
    engine.close()


def test_a_draft_model_of_another_shape_is_served_without_caching_and_told_why(start):
    engine = start(Kind("draft_model", 0, "narrow"))
    (cold,) = engine.complete(ASK)
    engine.forget()
    (again,) = engine.complete(ASK)

    assert again.num_cached_tokens == 0
    assert cold.tokens == again.tokens
    assert "choose a draft model that keeps the same, or none" in engine.log_text()
    engine.close()
