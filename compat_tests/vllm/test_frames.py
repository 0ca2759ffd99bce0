"""How many stack frames lie between a hook of vLLM and the copy that it causes, both included.

Every one of them is a place that a reader passes on the way.
"""

import sys

import pytest
from test_scheduler_contract import CONNECTOR

MAX_FRAMES = 8
PROMPT = list(range(43))


@pytest.fixture
def engine(model):
    from scheduler_harness import SimulatedEngine
    from simulated_shape import Shape, base_config

    engine = SimulatedEngine(base_config(model("oracle"), CONNECTOR), Shape())
    yield engine
    engine.close()


def frames_to(copy, hook):
    """Name the frames from `hook` to the one that is about to run `copy`; empty if it is not."""
    frame, names = sys._getframe(2), []
    if frame.f_code is not copy.__code__:
        return []
    while frame is not None:
        names.append(frame.f_code.co_qualname if sys.version_info >= (3, 11) else "")
        if frame.f_code is hook.__code__:
            return names[::-1]
        frame = frame.f_back
    return []


def paths_between(hook, copy, run):
    """Return every different stack from `hook` to `copy` that is seen while `run` runs."""
    seen = set()

    def look(frame, event, argument):
        if event == "call":
            seen.add(tuple(frames_to(copy, hook)))

    sys.setprofile(look)
    try:
        run()
    finally:
        sys.setprofile(None)
    return seen - {()}


@pytest.mark.parametrize(
    ("hook", "copy"), [("wait_for_save", "_gather"), ("start_load_kv", "_scatter")]
)
def test_a_hook_of_vllm_is_few_frames_from_its_copy(engine, hook, copy):
    from flexkv_connectors.vllm.connector import FlexKVConnector
    from flexkv_core.data.transfer import cpu_lane

    def serve_twice():
        engine.drain()
        engine.add(PROMPT, 4)
        engine.drain()
        assert engine.reset(running=False, connector=False)
        engine.add(PROMPT, 4)
        engine.drain()

    paths = paths_between(getattr(FlexKVConnector, hook), getattr(cpu_lane, copy), serve_twice)
    assert paths, "nothing was copied"
    assert [path for path in paths if len(path) > MAX_FRAMES] == []
