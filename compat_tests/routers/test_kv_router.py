"""Dynamo's router itself, over Dynamo's own event plane, believes the same as its indexer."""

import pytest
from prompts import OTHERS, PROMPT

pytestmark = pytest.mark.nightly


@pytest.fixture
def router(tmp_path):
    """Dynamo's, in the place of the indexer."""
    from kv_router import KvRouterProcess

    router = KvRouterProcess(tmp_path)
    yield router
    router.close()


def test_a_prompt_that_vllm_has_in_part_counts_on_in_host_memory(start):
    engine = start()
    engine.serve(PROMPT, OTHERS[0])
    has = engine.has(PROMPT)
    assert 0 < has.gpu < has.cpu == 384
    assert engine.told(PROMPT) == has


def test_each_prompt_counts_in_the_tier_that_it_is_in(start_with_ssd):
    engine = start_with_ssd()
    engine.serve(PROMPT, *OTHERS[:3])
    prompts = [PROMPT, *OTHERS[:3]]
    has = [engine.has(prompt) for prompt in prompts]
    assert has[0] == (0, 0, 384)
    assert has[-1] == (400, 400, 400)
    assert [engine.told(prompt) for prompt in prompts] == has
