"""vLLM in a process that believes it has Hopper GPUs: enough to build its models on no device.

Platform, backends, page sizes and cache groups are then those of a GPU; nothing can be computed.
What is missing from vLLM's CPU build is stood in for: compiled operators, and FlashAttention.
"""

import importlib.abc
import importlib.machinery
import sys
import types
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch

__all__ = ["StandIn", "building", "pretend"]

_MISSING = (
    "cutlass",
    "deep_gemm",
    "vllm._C",
    "vllm._C_stable_libtorch",
    "vllm._flashkda_C",
    "vllm._moe_C",
    "vllm._moe_C_stable_libtorch",
    "vllm.model_executor.kernels.linear.cute_dsl.gemm_rs_ar",
    "vllm.model_executor.layers.minimax_rms_norm.lamport_workspace",
    "vllm.vllm_flash_attn",
)


class _Agreeable:
    """Whatever is asked of it, it agrees."""

    def __call__(self, *_, **__):
        return self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __mro_entries__(self, _):
        return ()

    def __or__(self, _):
        return self


class _Stub(_Agreeable, types.ModuleType):
    """A module in which everything agrees."""

    __version__ = "0"


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules that are not there."""

    def __init__(self, *names):
        self.names = names

    def find_spec(self, name, *_):
        if any(f"{name}.".startswith(f"{missing}.") for missing in self.names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Stub(spec.name)

    def exec_module(self, module):
        pass


def pretend():
    """Make this process's vLLM that of a GPU; to be called before anything of it is loaded."""
    sys.meta_path.insert(0, StandIn(*_MISSING))
    _stand_in_for_operators(lambda name: "support" in name)

    from vllm import platforms

    platforms.vllm_version_matches_substr = lambda _: False
    platforms._current_platform = _hopper()()


def _hopper():
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    facts = {
        "get_device_capability": DeviceCapability(9, 0),
        "get_device_name": "NVIDIA H100 80GB HBM3",
        "get_device_total_memory": 80 * 2**30,
        "get_cuda_runtime_major": 12,
        "current_device": "meta",
        "device_count": 8,
        "num_compute_units": 132,
        "is_fully_connected": True,
        "is_arch_support_pdl": True,
        "is_integrated_gpu": False,
        "is_pin_memory_available": False,
        "import_kernels": None,
    }
    return type("Hopper", (NonNvmlCudaPlatform,), {n: _answer(fact) for n, fact in facts.items()})


def _answer(fact):
    return classmethod(lambda *_, **__: fact)


def _stand_in_for_operators(is_wanted):
    """Let operators be found that this build of vLLM does not have."""
    namespace = torch._ops._OpNamespace
    real = namespace.__getattr__

    def find(self, name):
        try:
            return real(self, name)
        except AttributeError:
            if not is_wanted(name):
                raise
            return _Agreeable()

    namespace.__getattr__ = find


@contextmanager
def building():
    """Let models be built: tensors of the GPU are on no device."""
    from vllm.platforms import current_platform

    real = torch._ops._OpNamespace.__getattr__
    platform = type(current_platform)
    with ExitStack() as stack:
        stack.callback(setattr, torch._ops._OpNamespace, "__getattr__", real)
        _stand_in_for_operators(lambda name: not name.startswith("__"))
        stack.enter_context(mock.patch.object(platform, "device_type", "meta"))
        yield
