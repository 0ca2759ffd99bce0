"""The scheduler half and adapters whose files are read and changed, without an engine."""

import pytest
from half_rig import (
    BLOCK_TOKENS,
    NUM_TOKENS,
    compute,
    demoted,
    know,
    lora,
    num_in_host_memory,
    request_of,
    saved,
    serve,
    write_adapter,
)


@pytest.fixture
def folder(tmp_path):
    return write_adapter(tmp_path / "adapter", b"weights")


def introduce(ready, adapters, folder):
    """Let an adapter become known."""
    serve(ready, request_of(lora(folder), request_id="first"))
    know(adapters)
    ready.session.reset()


def test_a_request_whose_adapter_is_not_known_yet_is_saved_from_its_first_block_on_later(
    ready, adapters, folder
):
    digest = adapters._reader.read
    asked = []
    adapters._reader.read = lambda *question: asked.append(question)
    request = request_of(lora(folder))
    assert ready.match(request, 0) == 0
    assert compute(ready, request) is None
    digest(*asked[0])
    know(adapters)
    assert compute(ready, request).num_blocks == 4


def test_a_request_finds_what_another_of_its_adapter_has_saved(ready, adapters, folder):
    introduce(ready, adapters, folder)
    assert serve(ready, request_of(lora(folder))) == 0
    assert serve(ready, request_of(lora(folder), request_id="again")) == NUM_TOKENS


def test_a_request_whose_adapter_changes_before_it_is_computed_is_not_saved(
    ready, adapters, folder
):
    introduce(ready, adapters, folder)
    request = request_of(lora(folder))
    ready.match(request, 0)
    write_adapter(folder, b"WEIGHTS")
    assert compute(ready, request) is None


def test_a_request_whose_adapter_changes_while_it_is_computed_is_saved_no_further(
    ready, adapters, folder
):
    introduce(ready, adapters, folder)
    request = request_of(lora(folder))
    ready.match(request, 0)
    assert compute(ready, request, 0, 128).num_blocks == 2
    write_adapter(folder, b"WEIGHTS")
    assert compute(ready, request, 128, 256) is None


def test_what_was_computed_while_its_adapter_changed_is_not_found(ready, adapters, folder):
    introduce(ready, adapters, folder)
    request = request_of(lora(folder))
    ready.match(request, 0)
    plan = compute(ready, request)
    write_adapter(folder, b"WEIGHTS")
    saved(ready, plan)
    assert num_in_host_memory(ready) == 0
    assert demoted(ready) == 0


def test_an_offer_ends_when_the_adapter_changes(ready, adapters, folder):
    introduce(ready, adapters, folder)
    serve(ready, request_of(lora(folder)))
    request = request_of(lora(folder), request_id="again")
    assert ready.match(request, 0) == NUM_TOKENS
    write_adapter(folder, b"WEIGHTS")
    adapters.look_again()
    assert ready.match(request, 0) == 0
    assert not ready.session.manager._claims


@pytest.mark.parametrize(("num_local_tokens", "num_saved"), [(0, 4), (BLOCK_TOKENS, 0)])
def test_what_vllm_kept_under_the_name_of_an_adapter_is_not_saved_once_that_was_another(
    ready, adapters, folder, num_local_tokens, num_saved
):
    introduce(ready, adapters, folder)
    write_adapter(folder, b"WEIGHTS")
    adapters.begin_load(lora(folder, load_inplace=True))
    adapters.end_load(lora(folder, load_inplace=True))
    know(adapters)
    request = request_of(lora(folder))
    ready.match(request, num_local_tokens)
    plan = compute(ready, request)
    assert (plan.num_blocks if plan else 0) == num_saved


def test_requests_that_have_ended_leave_nothing_of_their_adapter(ready, adapters, folder):
    serve(ready, request_of(lora(folder)))
    assert not adapters._num_requests
