"""The environment of engines under test: the only file of the harness that reads or changes one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent

_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"


def safe_environment() -> dict[str, str]:
    """Return this process's environment, made safe: no network, no imports from the checkout."""
    unwanted = ("PYTHONHASHSEED", "VLLM_PLUGINS", "VLLM_CPU_KVCACHE_SPACE")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return kept | {
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": str(HERE),
        "HF_HUB_OFFLINE": "1",
        # Threads that spin for each other on shared cores made a step ten times as slow.
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }


@contextmanager
def restored_environment() -> Iterator[None]:
    """Take back what is changed meanwhile: making a configuration sets variables of vLLM.

    It is made for the model runner that vLLM would choose, whatever a test before has chosen.
    """
    before = dict(os.environ)
    os.environ.pop(_RUNNER, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def choose_model_runner(*, v2: bool) -> None:
    """Tell vLLM in this process which of its model runners it has; it asks each time."""
    os.environ[_RUNNER] = str(int(v2))
