"""What vLLM has saved, SGLang loads, and the other way round: on one directory, without a copy."""

import torch
from block_reader import read_kv
from engine_pair import MAX_TOKENS, PROMPT, REUSED_TOKENS, ROUNDING, difference, serve
from sglang_process import PAGE_TOKENS

ALONE = {"flexkv": {"load": False, "save": False}}
TWO_RANKS = {"tensor_parallel_size": 2, "env": {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}}


def test_both_engines_compute_the_same_kv_but_for_rounding(computed):
    by_vllm = read_kv(computed.vllm_directory, PROMPT)
    by_sglang = read_kv(computed.sglang_directory, PROMPT)
    assert torch.equal(by_sglang, computed.sglang_kv), "stored as they lie in SGLang's pages"
    assert 0 < difference(by_vllm, by_sglang) <= ROUNDING


def test_sglang_continues_from_what_vllm_computed(computed, engines):
    assert computed.by_sglang.num_cached_tokens == 0
    with engines.sglang(computed.vllm_directory) as engine:
        warm = engine.complete(PROMPT, MAX_TOKENS)
        loaded = engines.pages_of(engine)
    assert warm.num_from_storage == REUSED_TOKENS
    assert warm.tokens == computed.by_sglang.tokens
    assert torch.equal(loaded, read_kv(computed.vllm_directory, PROMPT)), "vLLM's, bit for bit"
    assert difference(loaded, computed.sglang_kv) <= ROUNDING


def test_vllm_continues_from_what_sglang_computed(computed, engines):
    assert computed.by_vllm.num_cached_tokens == 0
    with engines.vllm(computed.sglang_directory) as engine:
        own = serve(engine, kv_transfer_params=ALONE)
        engine.remember_pages(PROMPT)
        engine.forget()
        warm = serve(engine)
        differences = engine.page_differences(PROMPT)
    assert (own.num_cached_tokens, warm.num_cached_tokens) == (0, REUSED_TOKENS)
    assert warm.tokens == own.tokens == computed.by_vllm.tokens
    loaded = differences[: REUSED_TOKENS // (PAGE_TOKENS // 2)]
    assert all(0 < page <= ROUNDING for page in loaded), "SGLang's, not vLLM's own"


def test_sglang_of_one_rank_continues_from_what_vllm_of_two_ranks_computed(
    computed, engines, tmp_path
):
    with engines.vllm(tmp_path, max_tp=2, **TWO_RANKS) as engine:
        serve(engine)
    with engines.sglang(tmp_path, max_tp=2) as engine:
        warm = engine.complete(PROMPT, MAX_TOKENS)
        loaded = engines.pages_of(engine)
    assert warm.num_from_storage == REUSED_TOKENS
    assert warm.tokens == computed.by_sglang.tokens
    assert 0 < difference(loaded, computed.sglang_kv) <= ROUNDING
