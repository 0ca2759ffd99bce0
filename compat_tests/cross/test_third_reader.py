"""The blocks on SSD mean to Hugging Face transformers what they mean to both engines.

transformers shares no code with the engines, and the reader knows neither of them: if all three
agree, the stored order is what it is said to be.
"""

import pytest
import torch
from block_reader import read_kv
from engine_pair import PROMPT, REUSED_TOKENS, ROUNDING, difference
from transformers import AutoModelForCausalLM, DynamicCache

HEADS, TOKENS = -3, -2
WRONG = 1.0
"""Less than what any wrong order makes of KV and logits."""

MIXED_UP = {
    "heads": lambda kv: kv.flip(HEADS),
    "heads of one layer": lambda kv: torch.cat((kv[:1].flip(HEADS), kv[1:])),
    "layers": lambda kv: kv.flip(0),
    "keys and values": lambda kv: kv.flip(1),
    "tokens of the values": lambda kv: torch.stack((kv[:, 0], kv[:, 1].flip(TOKENS)), 1),
}


class Transformers:
    """A model in transformers, and what it makes of the prompt by itself."""

    def __init__(self, folder):
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        computed = self._forward(PROMPT, None)
        self.next_logits = computed.logits[0, -1]
        layers = computed.past_key_values.layers
        kv = torch.stack([torch.stack((layer.keys[0], layer.values[0])) for layer in layers])
        self.kv = kv[..., :REUSED_TOKENS, :]

    def continue_from(self, kv):
        """Return the logits behind the prompt, most of whose KV is given."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(kv):
            cache.update(keys[None], values[None], layer)
        return self._forward(PROMPT[REUSED_TOKENS:], cache).logits[0, -1]

    @torch.no_grad()
    def _forward(self, tokens, cache):
        return self._model(torch.tensor([tokens]), past_key_values=cache, use_cache=True)


@pytest.fixture(scope="module")
def transformers(engines):
    return Transformers(engines.model)


@pytest.fixture(scope="module", params=["vllm", "sglang"])
def stored(computed, request):
    directories = {"vllm": computed.vllm_directory, "sglang": computed.sglang_directory}
    return read_kv(directories[request.param], PROMPT)


def test_blocks_hold_what_transformers_computes(stored, transformers):
    assert difference(stored, transformers.kv) <= ROUNDING


def test_transformers_continues_from_blocks_as_from_its_own_prefill(stored, transformers):
    assert difference(transformers.continue_from(stored), transformers.next_logits) <= ROUNDING


@pytest.mark.parametrize("what", MIXED_UP)
def test_another_order_would_show_in_the_logits(stored, transformers, what):
    mixed_up = MIXED_UP[what](stored)
    assert difference(transformers.continue_from(mixed_up), transformers.next_logits) > WRONG


def test_another_order_of_tokens_would_show_in_the_kv(stored, transformers):
    """Attention does not: keys carry their positions, so it sees a set."""
    assert difference(stored.flip(TOKENS), transformers.kv) > WRONG
