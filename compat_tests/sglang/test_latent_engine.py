"""Multi-head latent attention in the real engine: one rank stores, and both load."""

import json
import random
import shutil

import pytest
from engine_steps import wait_until_stored, with_other_weights
from sglang_process import PAGE_TOKENS, flexkv

PROMPT = random.Random(1).choices(range(400), k=1000)
HIT_TOKENS = len(PROMPT) // PAGE_TOKENS * PAGE_TOKENS
TWO_RANKS = {"tp_size": 2, "env": {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}}
IN_SGLANGS_WORDS = {
    "moe_layer_freq": 1,
    "rope_parameters": {  # the only kind that SGLang has for latents on a CPU; by 1 it does nothing
        "rope_type": "yarn",
        "factor": 1.0,
        "original_max_position_embeddings": 8192,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "rope_theta": 10000.0,
    },
}


@pytest.fixture
def latent_model(model, tmp_path):
    """Return a model with a configuration that SGLang can read."""
    folder = tmp_path / "model"
    shutil.copytree(model("mla"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | IN_SGLANGS_WORDS))
    return folder


@pytest.fixture
def start(start_engine, latent_model, tmp_path):
    """Start engines on one directory, each after the end of the one before."""
    return lambda **arguments: start_engine(latent_model, flexkv(tmp_path / "ssd"), **arguments)


def test_two_ranks_store_and_load_and_so_does_one(start, latent_model, tmp_path):
    engine = start(**TWO_RANKS)
    cold = engine.complete(PROMPT)
    assert cold.num_cached_tokens == 0
    wait_until_stored(engine, PROMPT)
    assert engine.complete(PROMPT).tokens == cold.tokens
    engine.kill()

    engine = start(**TWO_RANKS)
    warm = engine.complete(PROMPT)
    assert warm.num_from_storage == HIT_TOKENS
    assert warm.tokens == cold.tokens

    engine.update_weights(with_other_weights(latent_model, tmp_path / "other", "q_proj"))
    later = engine.complete(PROMPT)
    assert later.num_cached_tokens == 0
    assert later.tokens != cold.tokens
    wait_until_stored(engine, PROMPT)
    assert engine.complete(PROMPT).tokens == later.tokens

    warm = start().complete(PROMPT)
    assert warm.num_from_storage == HIT_TOKENS
    assert warm.tokens == cold.tokens
