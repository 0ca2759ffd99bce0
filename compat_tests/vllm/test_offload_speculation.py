"""Speculation below vLLM's own offloading: KV of draft layers is stored and served, too."""

import pytest
from engine_process import Ask, random_tokens
from offload_engines import connector_on

PROMPT = random_tokens(1, 700)
KINDS = {
    "draft_model": ("oracle", {"model": "oracle", "num_speculative_tokens": 2}, 1.0),
    "eagle": ("oracle", {"model": "eagle", "num_speculative_tokens": 2}, 0.0),
    "mtp": ("mtp", {"num_speculative_tokens": 1}, 0.0),
}
"""Model, options, and which part of the drafts is accepted: the rest have random weights."""

AT_NIGHT = [pytest.param(name, marks=pytest.mark.nightly) for name in ("eagle", "mtp")]


@pytest.fixture(scope="module", params=["draft_model", *AT_NIGHT])
def served(request, model, start_engine, tmp_path_factory):
    """Return what an engine does with the prompt: anew, in its own pages, from memory, from disk.

    With the part of the drafts that was accepted each time, and the least that it should be.
    """
    name, options, least = KINDS[request.param]
    speculation = options | {"method": request.param}
    if "model" in options:
        speculation["model"] = str(model(options["model"]))
    engine = start_engine(
        name,
        connector=connector_on(tmp_path_factory.mktemp("ssd")),
        speculative_config=speculation,
    )
    engine.connector("wait_open")
    answers = {"least": least, "anew": ask(engine), "local": ask(engine)}
    engine.forget()
    answers["memory"] = ask(engine)
    engine.forget()
    engine.connector("forget_rows")
    answers["disk"] = ask(engine)
    engine.close()
    return answers


def ask(engine):
    accepted, drafted = count(engine, "accepted"), count(engine, "draft")
    (completion,) = engine.complete(Ask(prompt=PROMPT))
    part = (count(engine, "accepted") - accepted) / (count(engine, "draft") - drafted)
    return completion, part


def count(engine, which):
    return engine.metrics()[f"vllm:spec_decode_num_{which}_tokens_total"]


@pytest.mark.parametrize("tier", ["memory", "disk"])
def test_a_prompt_is_hit_as_far_as_in_the_engine_itself(served, tier):
    assert served[tier][0].num_cached_tokens == served["local"][0].num_cached_tokens > 500
    assert served[tier][0].tokens == served["anew"][0].tokens


@pytest.mark.parametrize("tier", ["memory", "disk"])
def test_drafts_are_accepted_as_behind_a_local_hit(served, tier):
    """A draft model whose KV is missing guesses, and hardly any of its drafts is accepted."""
    assert served[tier][1] == served["local"][1] >= served["least"]
