"""The only reader of environment variables, and of the file that one of them names.

    FLEXKV_CONFIG_PATH   a YAML or JSON file of options
    FLEXKV_<OPTION>      one option, such as FLEXKV_CPU_CACHE_GB=16; an empty value sets nothing
    HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME   where models from the hub are on this machine

    FLEXKV_REPLACE_STOCK_CONNECTOR   1: vLLM's name for FlexKV's own connector means ours

    FLEXKV_ENGINE_STARTED   when the engine started; we set it ourselves, for the engine's processes

Any other FLEXKV_* variable is a mistake, except for two kinds: those that SGLang reads itself, and
those that Kubernetes sets in every container if a service's name begins with "flexkv".
"""

import math
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import parent_process
from pathlib import Path
from typing import NamedTuple

import msgspec

from flexkv_core.config import check_option
from flexkv_core.errors import ConfigError
from flexkv_core.excerpt import clipped, excerpt
from flexkv_core.option_file import read_options

__all__ = [
    "Layer",
    "engine_start_s",
    "hub_cache_folder",
    "mark_engine_start",
    "read_environment",
    "read_layers",
    "replaces_stock_connector",
]

_PREFIX = "FLEXKV_"
_CONFIG_PATH = "FLEXKV_CONFIG_PATH"
_REPLACE_STOCK = "FLEXKV_REPLACE_STOCK_CONNECTOR"
_ENGINE_STARTED = "FLEXKV_ENGINE_STARTED"
_NO_OPTIONS = frozenset({_REPLACE_STOCK, _ENGINE_STARTED})
_SGLANG_VARIABLES = frozenset(
    {"FLEXKV_ENABLE_LAYERWISE_TRANSFER", "FLEXKV_LAYERWISE_EVENTFD_CONNECT_MAX_RETRIES"}
)
_START_FIELD = 19
"""Field of /proc/self/stat, counted after the name: ticks from the machine's start to ours."""

_KUBERNETES_NAME = re.compile(
    r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_KUBERNETES_ADDRESS = re.compile(r"(tcp|udp|sctp)://.+:\d+")


class Layer(NamedTuple):
    """Options from one place; values are as they were written."""

    source: str
    """For people."""

    options: Mapping[str, object]


def read_environment() -> Mapping[str, object]:
    """Return the options of the configuration file, overridden by those of the environment.

    Values are as they were written: `config.parse_config` checks them.

    Raises:
        ConfigError: As in `read_layers`.
    """
    merged: dict[str, object] = {}
    for layer in read_layers():
        merged |= layer.options
    return merged


def read_layers() -> tuple[Layer, Layer]:
    """Return the options of the configuration file, and those of the environment, which override.

    Raises:
        ConfigError: A variable is unknown, or the file cannot be read or is not a mapping.
    """
    variables = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_PREFIX) and value and not _is_foreign(name, value)
    }
    path = variables.pop(_CONFIG_PATH, None)
    of_file = {} if path is None else _read_file(path)
    of_variables = {}
    for name, value in variables.items():
        option = name.removeprefix(_PREFIX).lower()
        check_option(option, spell=lambda option: _PREFIX + option.upper())
        of_variables[option] = value
    return Layer(f"the file {path}", of_file), Layer("the environment", of_variables)


def replaces_stock_connector() -> bool:
    """Return whether vLLM's name for FlexKV's own connector is to mean ours.

    Raises:
        ConfigError: The variable is neither true nor false.
    """
    value = os.environ.get(_REPLACE_STOCK) or "false"
    try:
        return msgspec.convert(value, bool, strict=False)
    except msgspec.ValidationError as error:
        msg = f"{_REPLACE_STOCK} is {excerpt(value)}: expected true or false"
        raise ConfigError(msg) from error


def hub_cache_folder() -> Path:
    """Return the folder in which the Hugging Face hub's client keeps models."""
    if hub := os.environ.get("HF_HUB_CACHE"):
        return Path(hub).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "huggingface" / "hub"


def mark_engine_start() -> None:
    """Record for this process and its children that the engine starts now, unless it already has.

    Call it in every process of an engine, before that process reads anything of the model: the
    first one reads the configuration before it starts those that read the weights, so a model
    changed in between was read half old, half new.
    """
    if parent_process() is None and _marked_s(os.getpid()) is None:
        os.environ[_ENGINE_STARTED] = f"{os.getpid()}:{time.time()!r}"


def engine_start_s() -> float:
    """Return when the first process of this engine started, in wall-clock time.

    An engine's processes are children of one another by Python's multiprocessing, and trust the
    mark of the first. Any other process is the first of its engine, no matter what started it.
    Without a mark, the engine is as old as this process.
    """
    if parent_process() is None:
        marked_s = _marked_s(os.getpid())
        return _process_start_s() if marked_s is None else marked_s
    marked_s = _marked_s(None)
    return min(_process_start_s(), math.inf if marked_s is None else marked_s)


def _marked_s(pid: int | None) -> float | None:
    """Return the engine's start as marked by process `pid`, or by any if None."""
    marker, _, text = os.environ.get(_ENGINE_STARTED, "").partition(":")
    if pid is not None and marker != str(pid):
        return None
    with suppress(ValueError):
        marked_s = float(text)
        return marked_s if marked_s <= time.time() else None
    return None


def _process_start_s() -> float:
    """Return when this process started; now, if the system does not say."""
    try:
        stat = Path("/proc/self/stat").read_text("utf-8", "replace")
    except OSError:
        return time.time()
    # The name of the process is in brackets and may contain anything.
    after_name = stat.rpartition(")")[2].split()
    # The end of that tick: we read nothing within it, but files may have been written in it.
    started_s = (int(after_name[_START_FIELD]) + 1) / os.sysconf("SC_CLK_TCK")
    return time.time() - max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)


def _is_foreign(name: str, value: str) -> bool:
    """Return whether a variable with our prefix is not one of our options."""
    if name in _NO_OPTIONS | _SGLANG_VARIABLES or _KUBERNETES_NAME.fullmatch(name):
        return True
    return name.endswith("_PORT") and _KUBERNETES_ADDRESS.fullmatch(value) is not None


def _read_file(path: str) -> Mapping[str, object]:
    """Return the options in a file; it may be empty."""
    try:
        return read_options(Path(path).expanduser())
    except (OSError, RuntimeError) as error:
        reason = (
            f"cannot be read: {getattr(error, 'strerror', error)}; expected a YAML or JSON file"
        )
    except ValueError as error:
        reason = f"is not a file of options: {clipped(' '.join(str(error).split()))}"
    msg = f"{_CONFIG_PATH} is {clipped(path)}, which {reason}"
    raise ConfigError(msg)
