"""FlexKV's connector for vLLM with a watch on it: what each step spends in its hooks.

vLLM finds it by `kv_connector_module_path`; `vllm_end_to_end` asks for the times.
"""

import functools
import inspect
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from typing_extensions import override
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

from flexkv_connectors.vllm.connector import FlexKVConnector

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

P = ParamSpec("P")
T = TypeVar("T")

FIRST_OF_STEP = ("build_connector_meta", "bind_connector_metadata")
"""Called once in each step: in the scheduler, and in a worker."""


class TimedConnector(FlexKVConnector):
    """FlexKV; the hooks that it defines are timed, those within another one with that one.

    A step is what lies between two calls of `FIRST_OF_STEP`. Its time includes the watch's own,
    which is much of what the hooks of each layer seem to cost: they do nothing.
    """

    @override
    def __init__(
        self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> None:
        self.is_running = False
        self.spent_s = 0.0
        self.steps_s: list[float] = []
        super().__init__(vllm_config, role, kv_cache_config)

    def take_steps(self) -> list[float]:
        """Return the seconds that each step since the last call has spent in hooks."""
        steps, self.steps_s = self.steps_s, []
        return steps


def _timed(name: str, hook: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(hook)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        connector = args[0]
        assert isinstance(connector, TimedConnector)
        if connector.is_running:
            return hook(*args, **kwargs)
        if name in FIRST_OF_STEP:
            connector.steps_s.append(connector.spent_s)
            connector.spent_s = 0.0
        connector.is_running = True
        start = time.perf_counter()
        answer = hook(*args, **kwargs)
        connector.spent_s += time.perf_counter() - start
        connector.is_running = False
        return answer

    return run


for _name, _hook in vars(FlexKVConnector).items():
    if inspect.isfunction(_hook) and not _name.startswith("_"):
        setattr(TimedConnector, _name, _timed(_name, _hook))
