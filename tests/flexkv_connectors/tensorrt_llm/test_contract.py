"""Our classes against the interface as data, in every generation of it."""

import inspect
import sys

import pytest
from engine_double import Engine, Request

from compat_tests.contract.tensorrt_llm import GENERATIONS, forget_connector, stand_ins


@pytest.fixture(params=GENERATIONS, ids=lambda generation: generation.version)
def generation(request):
    forget_connector()
    sys.modules.update(stand_ins(request.param))
    yield request.param
    forget_connector()


def classes_of(generation):
    from flexkv_connectors.tensorrt_llm import FlexKVScheduler, FlexKVWorker

    return (FlexKVScheduler, generation.scheduler), (FlexKVWorker, generation.worker)


def test_nothing_abstract_is_left(generation):
    assert [cls.__abstractmethods__ for cls, _ in classes_of(generation)] == [frozenset()] * 2


def test_every_method_takes_what_the_engine_gives(generation):
    for cls, methods in classes_of(generation):
        for name, method in methods.items():
            inspect.signature(getattr(cls, name)).bind(None, *method.parameters)


def test_attention_data_parallelism_is_opted_into(generation):
    assert all(cls.supports_attention_dp is True for cls, _ in classes_of(generation))


@pytest.mark.parametrize("generation", range(len(GENERATIONS)))
def test_the_connector_works_at_either_place_of_the_interface(tmp_path, monkeypatch, generation):
    monkeypatch.setenv("FLEXKV_CPU_CACHE_GB", "0.01")
    engine = Engine(tmp_path, generation=generation).register()
    engine.run(Request(1, list(range(130))))
    engine.run(Request(2, list(range(130))))
    assert engine.offers[2] == 128
    engine.close()


def test_another_name_in_the_package_is_an_attribute_error():
    import flexkv_connectors.tensorrt_llm as package

    with pytest.raises(AttributeError, match="FlexKVLeader"):
        package.FlexKVLeader  # noqa: B018 reading it is the test
