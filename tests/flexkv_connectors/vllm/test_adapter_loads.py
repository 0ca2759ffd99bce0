"""An engine core whose loads are heard, without an engine."""

import inspect

import pytest

from flexkv_connectors.fault_barrier import FaultBarrier
from flexkv_connectors.vllm import adapter_loads
from flexkv_connectors.vllm.adapter_loads import wrap_loads
from tests.flexkv_connectors.vllm.conftest import lora, write_adapter


@pytest.fixture
def core():
    """Return an engine core as vLLM has it."""

    class Core:
        def __init__(self):
            self.calls = []

        def add_lora(self, lora_request: int) -> bool:
            self.calls.append(lora_request)
            return True

        def remove_lora(self, lora_id: int) -> bool:
            self.calls.append(lora_id)
            return False

    return Core


@pytest.fixture
def barrier(adapters, monkeypatch):
    """Let the adapters follow; return what keeps them from harming anybody."""
    barrier = FaultBarrier()
    monkeypatch.setattr(adapter_loads, "_followers", {adapters: barrier})
    return barrier


def test_vllm_still_does_what_it_did(core, adapters, barrier):
    assert wrap_loads(core)
    engine, words = core(), lora("/no/where")
    assert (engine.add_lora(words), engine.remove_lora(lora_id=1)) == (True, False)
    assert engine.calls == [words, 1]


def test_vllm_still_reads_the_types_of_arguments(core):
    before = inspect.signature(core().add_lora)
    wrap_loads(core)
    assert inspect.signature(core().add_lora) == before


def test_a_load_is_heard_before_it_happens(core, adapters, barrier, folder):
    wrap_loads(core)
    core().add_lora(lora(folder))
    write_adapter(folder, b"WEIGHTS")
    assert adapters.digest(lora(folder)) is None


def test_a_load_that_fails_is_not_taken_for_one(core, adapters, barrier, folder):
    def fail(self, lora_request):
        raise RuntimeError("vLLM says so")

    core.add_lora = fail
    wrap_loads(core)
    with pytest.raises(RuntimeError, match="vLLM says so"):
        core().add_lora(lora(folder))
    assert adapters.digest(lora(folder)) is None


def test_a_removal_is_heard(core, adapters, barrier, folder):
    wrap_loads(core)
    core().add_lora(lora(folder))
    core().remove_lora(1)
    write_adapter(folder, b"WEIGHTS")
    assert adapters.digest(lora(folder)) is not None


def test_a_load_is_heard_once(core, adapters, barrier, folder, monkeypatch):
    heard = []
    monkeypatch.setattr(type(adapters), "begin_load", lambda _, lora: heard.append(lora))
    wrap_loads(core)
    wrap_loads(core)
    core().add_lora(lora(folder))
    assert len(heard) == 1


def test_a_failure_of_ours_is_none_of_vllms(core, adapters, barrier):
    wrap_loads(core)
    assert core().add_lora(None)
    assert barrier.reason


def test_of_two_engines_in_a_process_none_believes_what_it_hears(
    core, follow, adapters, folder, monkeypatch
):
    both = {adapters: FaultBarrier(), follow(): FaultBarrier()}
    monkeypatch.setattr(adapter_loads, "_followers", both)
    wrap_loads(core)
    adapters.digest(lora(folder))
    core().add_lora(lora(folder))
    assert adapters.digest(lora(folder)) is None


def test_a_core_that_loads_in_another_way_is_left_alone():
    class Core:
        def remove_lora(self, lora_id: int) -> bool:
            return True

    before = Core.remove_lora
    assert not wrap_loads(Core)
    assert Core.remove_lora is before
