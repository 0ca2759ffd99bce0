"""Names that a client gives with a request: a long one costs nobody else time."""

import time
from types import SimpleNamespace

import pytest

from flexkv_connectors.vllm.adapters import Adapters
from flexkv_connectors.vllm.requests import VllmRequest
from flexkv_connectors.vllm.switches import Switches
from flexkv_core.identity.as_read import Judge, Mounts

TOKENS = 4096


def with_salt(salt):
    return request(cache_salt=salt)


def with_medium(identifier):
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

    medium = MultiModalFeatureSpec(
        data=None,
        modality="image",
        identifier=identifier,
        mm_position=PlaceholderRange(offset=0, length=TOKENS),
    )
    return request(mm_features=[medium])


def request(**fields):
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

    return Request("r", [1] * TOKENS, SamplingParams(max_tokens=1), None, **fields)


def num_keys(asked):
    adapters = Adapters(bytes(32), None, Judge(0.0, Mounts("")))
    return len(
        VllmRequest(
            asked, adapters, SimpleNamespace(block_tokens=64, draft_blocks=0), Switches()
        ).keys()
    )


@pytest.mark.parametrize("with_name", [with_salt, with_medium])
def test_a_name_of_any_size_costs_nothing(with_name):
    asked = with_name("x" * 20_000_000)

    began_s = time.thread_time()
    assert num_keys(asked) == 0
    assert time.thread_time() - began_s < 0.1


@pytest.mark.parametrize("with_name", [with_salt, with_medium])
def test_a_name_as_names_are_has_keys(with_name):
    assert num_keys(with_name("x" * 1024)) == TOKENS / 64
    assert num_keys(with_name("x" * 1025)) == 0
