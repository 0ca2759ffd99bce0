"""A real SGLang engine on a CPU in a process of its own, as an object."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

from json_child import EngineFailure, JsonChild  # noqa: E402 the line above makes it importable

__all__ = ["EngineFailure", "SglangCompletion", "SglangProcess", "flexkv", "safe_environment"]

PAGE_TOKENS = 64
START_LIMIT_S = 300.0


class SglangCompletion(msgspec.Struct, frozen=True):
    """What became of a request, and where its cached tokens came from."""

    tokens: list[int]
    num_cached_tokens: int
    sources: dict[str, Any]
    seconds: float
    prompt_logprobs: list[float | None] = []
    """Of the tokens that they were asked for."""

    @property
    def num_from_storage(self) -> int:
        """Tokens that the storage backend gave."""
        return int(self.sources.get("storage", 0))


class SglangProcess(JsonChild):
    """One engine with one configuration. Slow to start (20 s and more): share it.

    Args:
        model: Folder of a model of `models.py`.
        folder: Empty folder of this engine alone: working directory and log.
        storage: Extra config of HiCache's storage, or None for no hierarchical cache.
        python: An interpreter that has SGLang.
        env: Environment on top of the harness's own.
        arguments: Everything else `sglang.Engine` takes.
    """

    def __init__(
        self,
        model: Path,
        folder: Path,
        storage: dict[str, Any] | None = None,
        python: Path = Path(sys.executable),
        env: dict[str, str] | None = None,
        **arguments: Any,
    ) -> None:
        command = [python, HERE / "engine_child.py"]
        super().__init__(command, folder, safe_environment() | (env or {}))
        hicache = {} if storage is None else _hicache(storage)
        self._call("start", START_LIMIT_S, **_defaults(model) | hicache | arguments)

    def complete(self, prompt: list[int], max_tokens: int = 16, **more: Any) -> SglangCompletion:
        """Serve one request; `more` is of SGLang's own request."""
        answer = self._call("complete", prompt=prompt, max_tokens=max_tokens, **more)
        return msgspec.convert(answer, SglangCompletion)

    def complete_with_noise(self, prompt: list[int], position: int) -> None:
        """Serve a request that has an embedding of its own for one token."""
        self._call("complete_with_noise", prompt=prompt, max_tokens=4, position=position)

    def update_weights(self, model: Path) -> None:
        """Serve the weights of another folder from here on."""
        assert self._call("update_weights", model=str(model)), "the update was refused"

    def begin_weight_update(self) -> None:
        """Let others write into the weights from here on."""
        self._call("begin_weight_update")

    def end_weight_update(self) -> None:
        """Serve what others have written."""
        self._call("end_weight_update")

    def double_weights(self, changed: str) -> None:
        """Write into the weights named like `changed`, as others do, and tell nobody."""
        self._call("double_weights", changed=changed)

    def load_adapter(self, name: str, path: Path) -> None:
        """Load a LoRA adapter while it serves."""
        self._call("load_adapter", name=name, path=str(path))

    def unload_adapter(self, name: str) -> None:
        """Unload a LoRA adapter while it serves."""
        self._call("unload_adapter", name=name)

    def write_kv(self, prompt: list[int], path: Path) -> None:
        """Write `[layer, K or V, head, token, content]` of a prompt's pages to a file of torch."""
        self._call("write_kv", prompt=prompt, path=str(path))

    def flush(self) -> None:
        """Drop SGLang's own caches; the storage remembers."""
        self._call("flush")

    def attach(self, storage: dict[str, Any]) -> None:
        """Attach a storage while it serves."""
        assert self._call("attach", storage=json.dumps(storage)), "it was not attached"

    def detach(self) -> None:
        """Detach the storage while it serves."""
        assert self._call("detach"), "it was not detached"

    def clear(self) -> None:
        """Empty the storage while it serves."""
        assert self._call("clear"), "it was not emptied"

    def metrics(self) -> dict[str, float]:
        """Return what SGLang's `/metrics` would say, summed over labels; to be switched on."""
        return dict(self._call("metrics"))


def flexkv(directory: Path, **options: Any) -> dict[str, Any]:
    """Return the extra config of the README, with an SSD tier in `directory`."""
    return {
        "backend_name": "flexkv",
        "module_path": "flexkv_connectors.sglang.storage",
        "class_name": "FlexKVHiCacheStorage",
        "interface_v1": 1,
        "hicache_storage_pass_prefix_keys": True,
        "prefetch_threshold": PAGE_TOKENS,
        "ssd_cache_gb": 0.5,
        "ssd_cache_dir": str(directory),
    } | options


def safe_environment() -> dict[str, str]:
    """Return this process's environment, made safe: no network, no imports from the folder."""
    paths = [str(HERE / "stand_ins"), os.environ.get("PYTHONPATH")]
    return os.environ | {
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def _defaults(model: Path) -> dict[str, Any]:
    return {
        "model_path": str(model),
        "dtype": json.loads((model / "config.json").read_text())["dtype"],
        "device": "cpu",
        "attention_backend": "torch_native",
        "sampling_backend": "pytorch",
        "skip_tokenizer_init": True,
        "disable_cuda_graph": True,
        "disable_overlap_schedule": True,
        "page_size": PAGE_TOKENS,
        "max_total_tokens": 8192,
        "mem_fraction_static": 0.2,
        "log_level": "info",
    }


def _hicache(storage: dict[str, Any]) -> dict[str, Any]:
    return {
        "enable_hierarchical_cache": True,
        "hicache_ratio": 2.0,
        "hicache_io_backend": "direct",
        "hicache_mem_layout": "page_first_direct",
        "hicache_storage_backend": "dynamic",
        "hicache_storage_prefetch_policy": "wait_complete",
        "hicache_storage_backend_extra_config": json.dumps(storage),
    }
