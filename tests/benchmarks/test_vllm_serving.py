"""What of the comparison on a GPU needs no engine."""

import sys

from benchmarks.gpu import machine, vllm_serving
from benchmarks.gpu.vllm_serving import FULL, QUICK

SERVED = {
    "s": 2.0,
    "first_token_s": [0.5, 1.0],
    "next_token_s": [0.01, 0.03],
    "cached_tokens": [64, 128],
}


def test_a_summary_is_over_the_requests_of_all_batches():
    slow = {**SERVED, "s": 4.0, "first_token_s": [0.7, 0.7]}
    row = vllm_serving.summary([SERVED, slow])
    assert (row["first_token_ms"], row["first_token_ms_min_max"]) == (700.0, [500.0, 1000.0])
    assert row["next_token_ms"] == 20.0
    assert row["requests_per_minute_min_max"] == [30.0, 60.0]
    assert (row["cached_tokens"], row["rounds"]) == (96.0, 2)


def test_ratios_are_to_the_engine_without_a_connector():
    base = vllm_serving.summary([SERVED])
    ours = vllm_serving.summary([{**SERVED, "s": 1.0, "first_token_s": [0.25, 0.5]}])
    assert vllm_serving.ratios(ours, base) == {
        "first_token_ms_over_none": 0.5,
        "next_token_ms_over_none": 1.0,
        "requests_per_minute_over_none": 2.0,
    }


def test_every_engine_gets_the_same_prompts_and_no_two_are_equal():
    batches = vllm_serving.make_batches(QUICK)
    prompts = [tuple(prompt) for batch in batches for prompt in batch]
    assert batches == vllm_serving.make_batches(QUICK)
    assert len(set(prompts)) == len(prompts) == (QUICK.rounds + 1) * QUICK.batch


def test_the_published_case_fits_one_gpu():
    assert (FULL.batch, FULL.prompt_tokens, FULL.new_tokens) == (8, 21_000, 1_000)
    assert FULL.kv_gib == 22


def test_what_is_for_gpus_is_compared_where_there_is_one():
    names = {gpu: [c.name for c in vllm_serving.contenders(FULL, has_gpu=gpu)] for gpu in (0, 1)}
    on_gpu = ["FlexKV below vLLM's", "OffloadingConnector"]
    assert names == {0: ["none", "FlexKV"], 1: ["none", "FlexKV", *on_gpu]}


def test_flexkv_is_asked_to_use_the_gpu_that_there_is():
    for has_gpu in (False, True):
        flexkv = vllm_serving.contenders(FULL, has_gpu=has_gpu)[1]
        assert flexkv.connector["kv_connector_extra_config"]["enable_gpu"] is has_gpu


def test_without_a_gpu_it_says_so_in_one_line_and_starts_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "why_no_gpu", lambda: "torch sees no CUDA device")
    monkeypatch.setattr(sys, "argv", ["vllm_serving", "--work", str(tmp_path / "work")])
    vllm_serving.main()
    assert capsys.readouterr().out == "not run: no GPU (torch sees no CUDA device)\n"
    assert list(tmp_path.iterdir()) == []
