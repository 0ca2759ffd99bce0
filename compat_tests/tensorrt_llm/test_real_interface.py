"""The engine's own interface file and its pure-Python manager, from a checkout of TensorRT-LLM.

    FLEXKV_TRTLLM_SRC=<checkout> python -m pytest compat_tests/tensorrt_llm

Its compiled parts are stood in for; without the variable there is nothing to test.
"""

import ast
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from engine_double import Engine, Request

from compat_tests.contract import tensorrt_llm as contract

SOURCES = os.environ.get("FLEXKV_TRTLLM_SRC", "")
pytestmark = pytest.mark.skipif(not SOURCES, reason="FLEXKV_TRTLLM_SRC names no checkout")


def path_of(generation):
    return Path(SOURCES, *generation.module.split(".")).with_suffix(".py")


THERE = [generation for generation in contract.GENERATIONS if path_of(generation).exists()]


@pytest.fixture(autouse=True)
def options(monkeypatch):
    """Options of the cache; the variable above is none of them."""
    monkeypatch.delenv("FLEXKV_TRTLLM_SRC")
    monkeypatch.setenv("FLEXKV_CPU_CACHE_GB", "0.01")
    monkeypatch.setenv("FLEXKV_BLOCK_TOKENS", "8")
    yield
    contract.forget_connector()


def methods_in(path, name):
    """Return the methods of a class in a source, as the contract's data has them."""
    tree = ast.parse(path.read_text())
    [found] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return {
        node.name: contract.Method(
            tuple(argument.arg for argument in node.args.args[1:]),
            any("abstractmethod" in ast.unparse(mark) for mark in node.decorator_list),
        )
        for node in found.body
        if isinstance(node, ast.FunctionDef)
    }


def test_the_checkout_has_the_interface():
    assert THERE


@pytest.mark.parametrize("generation", THERE, ids=lambda generation: generation.version)
@pytest.mark.parametrize("half", ["worker", "scheduler"])
def test_the_contract_is_what_the_source_says(generation, half):
    got = methods_in(path_of(generation), f"KvCacheConnector{half.capitalize()}")
    known = getattr(generation, half)
    assert {name: got.get(name) for name in known} == dict(known)
    assert {name for name in got if got[name].is_abstract} <= set(known)


@dataclass(eq=False)
class EngineRequest(Request):
    """A request with what the real manager reads of it."""

    is_generation_only_request = False
    is_dummy_request = False
    kv_cache_retention_config = None
    state = contract.RequestState.CONTEXT_INIT

    @property
    def py_request_id(self):
        return self.request_id

    @property
    def context_current_position(self):
        return self.num_computed

    @property
    def context_remaining_length(self):
        return self.num_prompt - self.num_computed

    @property
    def context_chunk_size(self):
        return 7


class ManagedEngine(Engine):
    """An engine whose connector is called by TensorRT-LLM's own manager."""

    def _install(self, generation):
        self.generation = generation
        modules = contract.stand_ins(generation, gather=lambda item: [item])
        modules |= contract.stand_ins_for_the_manager()
        sys.modules.update(modules)
        specification = importlib.util.spec_from_file_location(
            generation.module, path_of(generation)
        )
        module = importlib.util.module_from_spec(specification)
        sys.modules[generation.module] = module
        specification.loader.exec_module(module)

    def register(self):
        module = sys.modules[self.generation.module]
        self.manager = module.KvCacheConnectorManager(self.workers[0], self.scheduler)
        return super().register()

    def get_cache_indices(self, request):
        """Stand for the engine's KV cache manager."""
        return list(request.pages)

    def commit_and_get_block_hashes(self, request):
        return []

    @property
    def kv_cache_manager(self):
        """What the real manager asks for the pages of requests."""
        return self

    def _match(self, request):
        num_tokens = self.manager.get_num_new_matched_tokens(request, request.num_local)
        return num_tokens, request.request_id in self.manager.new_async_requests.loading

    def _accept(self, request):
        self.manager.update_state_after_alloc(request, list(request.pages))

    def _announce(self, batch, started):
        prompts = [request for request in batch if request.num_computed < request.num_prompt]
        answers = [request for request in batch if request not in prompts]
        for request in answers:
            request.state = contract.RequestState.GENERATION_IN_PROGRESS
        scheduled = SimpleNamespace(
            context_requests=prompts + started,
            context_requests_chunking=[],
            context_requests_last_chunk=prompts + started,
            generation_requests=answers,
        )
        self.manager.build_scheduler_output(scheduled, self.kv_cache_manager)
        if hasattr(self.manager, "take_scheduled_requests_pending_load"):
            self.manager.take_scheduled_requests_pending_load(scheduled)
            assert scheduled.context_requests_last_chunk == prompts
        self.manager.handle_metadata()

    def _num_scheduled(self, request):
        if request.num_computed < request.num_prompt:
            return min(request.context_remaining_length, request.context_chunk_size)
        return 1

    def _is_saving(self, request):
        return self.manager.request_finished(request, list(request.pages))

    def _ask(self, started):
        for request in self.manager.get_finished():
            self._free(self.ending.pop(request.request_id))
        waiting = self.manager.pending_async_requests.loading
        for number in [number for number in self.loading if number not in waiting]:
            request = self.loading.pop(number)
            if request.phase == "loading":
                request.phase = "run"


class GroupedEngine(ManagedEngine):
    """One with the second cache manager, which speaks of layer groups."""

    @property
    def kv_cache_manager(self):
        module = sys.modules["tensorrt_llm._torch.pyexecutor.kv_cache.kv_cache_manager_v2"]
        manager = module.KVCacheManagerV2()
        manager.get_page_indices_by_layer_group = lambda request: [list(request.pages)]
        return manager

    def _accept(self, request):
        self.manager.update_state_after_alloc(request, [], [list(request.pages)])

    def _is_saving(self, request):
        return self.manager.request_finished(request, [], [list(request.pages)])


@pytest.fixture(params=range(len(contract.GENERATIONS)))
def engine(request, tmp_path):
    generation = contract.GENERATIONS[request.param]
    if generation not in THERE:
        pytest.skip("the checkout is of another time")
    engine = ManagedEngine(tmp_path, generation=request.param).register()
    yield engine
    engine.close()


def prompt(num_tokens):
    return list(range(num_tokens))


def test_the_real_manager_saves_and_loads(engine):
    engine.run(EngineRequest(1, prompt(20), num_new=14))
    engine.run(EngineRequest(2, prompt(30)))
    assert engine.offers == {1: 0, 2: 16}
    assert engine.scheduler._barrier.reason == ""


def test_the_real_manager_keeps_the_pages_of_an_aborted_load(engine):
    engine.run(EngineRequest(1, prompt(20)))
    [worker] = engine.workers
    lane, held = worker._half.session.worker, []
    lane.submit = held.append
    request = engine.submit(EngineRequest(2, prompt(20)))
    engine.iterate()
    engine.end(request)
    engine.iterate()
    assert engine.ending
    del lane.submit
    lane.submit(*held)
    engine.run()
    assert engine.is_idle


def test_loads_within_the_step_pass_the_real_manager(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("FLEXKV_LOAD_ASYNC", "false")
    position = contract.GENERATIONS.index(engine.generation)
    other = ManagedEngine(tmp_path, generation=position).register()
    other.run(EngineRequest(1, prompt(20)))
    other.run(EngineRequest(2, prompt(20)))
    assert other.offers[2] == 16
    assert not other.loading
    other.close()


@pytest.mark.skipif(contract.GENERATIONS[1] not in THERE, reason="the checkout is of another time")
def test_the_real_manager_speaks_of_layer_groups(tmp_path):
    engine = GroupedEngine(tmp_path, generation=1).register()
    engine.run(EngineRequest(1, prompt(20), num_new=14))
    engine.run(EngineRequest(2, prompt(30)))
    assert engine.offers == {1: 0, 2: 16}
    engine.close()
