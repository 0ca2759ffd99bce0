"""What a user can set. Nothing changes a `CacheConfig` after it was parsed."""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from flexkv_core.errors import ConfigError

__all__ = ["CacheConfig", "check_option", "parse_config"]

_MAX_GB = 65536
_MAX_BLOCK_TOKENS = 16384
_MAX_THREADS = 256
_MAX_TP = 1024
_MAX_WAIT_S = 3600
_MAX_STAGING_MB = 65536

_Size = Annotated[float, Meta(gt=0, le=_MAX_GB)]
_Name = Annotated[str, Meta(pattern=r"\A[^\ud800-\udfff]*\Z")]
"""Text that has a form in UTF-8: digests are made of it."""


class CacheConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All options, with their defaults. Names that FlexKV's users know mean the same here."""

    cpu_cache_gb: _Size | None = None
    """Host memory for blocks in GiB, for all ranks of a server on one node together; None sizes it
    from the memory that is free (`host_memory.default_cache_bytes`)."""

    ssd_cache_gb: _Size | None = None
    """Room for blocks on SSD in GiB, for an engine: all its ranks and directories together; None
    for no SSD tier."""

    ssd_cache_dir: str | tuple[str, ...] | None = None
    """Directories of the SSD tier, one or more: a list, or text with `;` between them."""

    ssd_directory_cap_gb: _Size | None = None
    """Most that all engines together may leave in one of these directories, in GiB; None limits
    only what earlier engines left behind."""

    promotion_timeout_s: Annotated[float, Meta(ge=0, le=_MAX_WAIT_S)] = 5.0
    """Seconds that a request waits at most for blocks to come from SSD; 0 never waits."""

    block_tokens: Annotated[int, Meta(ge=1, le=_MAX_BLOCK_TOKENS)] | None = None
    """Tokens in a block, the unit of reuse: a multiple of the engine's own page; None takes 64, or
    what is near it in whole pages."""

    block_format: Literal["cells", "native"] = "cells"
    """How blocks are stored: as cells, which every engine reads, or, in SGLang, as its pages are in
    memory: nothing is converted or copied on the way, and nobody else can read them."""

    eviction_policy: Literal["lru", "s3fifo"] = "lru"

    namespace: _Name = ""
    """The user's own keyspace: engines that set different ones share no block."""

    weight_version: _Name = ""
    """The user's name for the weights. Blocks saved under it are found again after the engine was
    told to change its weights in place; without one they are not."""

    trust_weight_version: bool = False
    """Believe that `weight_version` alone tells the weights apart, and read none of their files."""

    media_ids_are_hashes: bool = False
    """Clients send no `uuid` with their media, so that identifiers are hashes of content: only then
    do blocks behind media leave the process."""

    max_tp: Annotated[int, Meta(ge=1, le=_MAX_TP)] | None = None
    """Largest tensor-parallel degree among the engines that share blocks; None: this engine's."""

    load_async: bool = True
    """Load while other requests run, instead of within the engine's step."""

    min_load_tokens: Annotated[int, Meta(ge=0)] = 0
    """A hit of fewer tokens is recomputed; 0 loads every hit of one block or more."""

    copy_threads: Annotated[int, Meta(ge=1, le=_MAX_THREADS)] | None = None
    """Threads that copy between engine pages and host memory on CPU engines; None decides by the
    number of cores."""

    use_hugepage_cpu_buffer: bool = False
    """Ask the kernel for huge pages under the host tier."""

    enable_gpu: bool = False
    """Serve engines whose KV is on a GPU; off by default as long as no GPU has run it."""

    gpu_staging_mb: Annotated[float, Meta(gt=0, le=_MAX_STAGING_MB)] | None = None
    """Memory of each GPU in MiB through which blocks pass on their way; None takes what a step of
    the engine computes and a quarter more, or less where little is free."""

    @property
    def cpu_cache_bytes(self) -> int | None:
        """`cpu_cache_gb` in bytes."""
        return _in_bytes(self.cpu_cache_gb)

    @property
    def gpu_staging_bytes(self) -> int | None:
        """`gpu_staging_mb` in bytes."""
        return None if self.gpu_staging_mb is None else int(self.gpu_staging_mb * 2**20)

    @property
    def ssd_cache_bytes(self) -> int | None:
        """`ssd_cache_gb` in bytes; None for no SSD tier."""
        return _in_bytes(self.ssd_cache_gb)

    @property
    def ssd_directory_cap_bytes(self) -> int | None:
        """`ssd_directory_cap_gb` in bytes."""
        return _in_bytes(self.ssd_directory_cap_gb)

    @property
    def ssd_directories(self) -> tuple[Path, ...]:
        """`ssd_cache_dir` one by one, each once, `~` expanded; empty for no SSD tier."""
        written = self.ssd_cache_dir or ()
        names = written.split(";") if isinstance(written, str) else written
        named = [Path(name.strip()).expanduser() for name in names if name.strip()]
        return tuple(dict.fromkeys(named))


def _in_bytes(size_gb: float | None) -> int | None:
    return None if size_gb is None else int(size_gb * 2**30)


_YES_OR_NO = "true or false"
_SIZE = f"a size in GiB above 0 and up to {_MAX_GB}"
_TEXT = "text (in quotes if it looks like a number)"
_EXPECTED: Mapping[str, str] = {
    "cpu_cache_gb": f"{_SIZE}, such as 16 or 0.5",
    "ssd_cache_gb": f"{_SIZE}, such as 500; leave it out for no SSD tier",
    "ssd_cache_dir": "a path such as /nvme/flexkv, or several: a list, or text with ; between them",
    "ssd_directory_cap_gb": f"{_SIZE}, such as 2000",
    "promotion_timeout_s": f"seconds from 0 (a request never waits) to {_MAX_WAIT_S}, such as 5",
    "block_tokens": f"a whole number of tokens from 1 to {_MAX_BLOCK_TOKENS}, such as 64",
    "block_format": "'cells' or 'native'",
    "eviction_policy": "'lru' or 's3fifo'",
    "namespace": _TEXT,
    "weight_version": _TEXT,
    "trust_weight_version": _YES_OR_NO,
    "media_ids_are_hashes": _YES_OR_NO,
    "max_tp": f"a tensor-parallel degree from 1 to {_MAX_TP}, such as 8",
    "load_async": _YES_OR_NO,
    "min_load_tokens": "a whole number of tokens, 0 or more",
    "copy_threads": f"a number of threads from 1 to {_MAX_THREADS}",
    "use_hugepage_cpu_buffer": _YES_OR_NO,
    "enable_gpu": _YES_OR_NO,
    "gpu_staging_mb": f"a size in MiB above 0 and up to {_MAX_STAGING_MB}, such as 1024",
}

_SSD_IS_ON = "there is an SSD tier where ssd_cache_gb and ssd_cache_dir are set: remove it"
_SSD_GROWS = "files on SSD grow as they fill, up to ssd_cache_gb in all: remove it"
_NO_GDS = "this version moves nothing between GPU and SSD directly: remove it"
_NO_REMOTE = "this version has no remote tier and shares blocks with no other node: remove it"
_NO_SERVER = "there is no cache server here, the cache lives in the engine's processes: remove it"
_ENGINE_METRICS = "the engine's own /metrics endpoint shows the cache's metrics: remove it"
_ENGINE_LOGGING = "the engine's own logging settings apply to the cache: remove it"

# Options of FlexKV that its users may bring along, and what to do about each.
_NOT_HERE: Mapping[str, str] = {
    "tokens_per_block": "it is called block_tokens here: rename it",
    "kv_cache_dtype": "the cache takes it from the engine: set the engine's --kv-cache-dtype",
    "use_hugepage_tmp_buffer": "there is no such buffer here: remove it",
    "enable_ssd": _SSD_IS_ON,
    "max_file_size_gb": _SSD_GROWS,
    **dict.fromkeys(("enable_gds", "enable_nixl"), _NO_GDS),
    **dict.fromkeys(("enable_p2p_cpu", "enable_p2p_ssd", "enable_3rd_remote"), _NO_REMOTE),
    **dict.fromkeys(("use_mooncake_store_backend", "mooncake_store_config_path"), _NO_REMOTE),
    **dict.fromkeys(("redis_host", "redis_port", "redis_password"), _NO_REMOTE),
    **dict.fromkeys(("server_client_mode", "server_launch_mode", "server_recv_port"), _NO_SERVER),
    **dict.fromkeys(("instance_num", "instance_id", "enable_mps"), _NO_SERVER),
    **dict.fromkeys(("enable_metrics", "py_metrics_port", "cpp_metrics_port"), _ENGINE_METRICS),
    **dict.fromkeys(("log_level", "logging_prefix"), _ENGINE_LOGGING),
}


def parse_config(*layers: Mapping[str, object]) -> CacheConfig:
    """Return the configuration that `layers` say together, each above those before it.

    Values may be text, as environment variables are: "0.5", "64", "true", "1".

    Raises:
        ConfigError: If an option is unknown, its value cannot be used, or it contradicts another;
            one sentence.
    """
    merged: dict[str, object] = {}
    for layer in layers:
        merged |= layer
    for option, value in merged.items():
        check_option(option)
        _check_value(option, value)
    config = msgspec.convert(merged, CacheConfig, strict=False)
    _check_ssd(config)
    _check_gpu(config)
    _check_weight_version(config)
    return config


def check_option(option: str, spell: Callable[[str], str] = str) -> None:
    """Refuse an option that there is not.

    Args:
        option: Its name.
        spell: How the place where it was set spells the name of an option.

    Raises:
        ConfigError: If it is unknown: names the nearest one, or says what became of it.
    """
    if option in _EXPECTED:
        return
    if option in _NOT_HERE:
        msg = f"{spell(option)} cannot be set: {_NOT_HERE[option]}"
        raise ConfigError(msg)
    nearest = difflib.get_close_matches(option, _EXPECTED, n=1)
    advice = (
        f"did you mean {spell(nearest[0])}?"
        if nearest
        else f"expected one of {', '.join(spell(known) for known in _EXPECTED)}"
    )
    msg = f"unknown option {spell(option)}: {advice}"
    raise ConfigError(msg)


def _check_value(option: str, value: object) -> None:
    """Refuse a `value` that is not what `option` takes."""
    try:
        msgspec.convert({option: value}, CacheConfig, strict=False)
    except msgspec.ValidationError as error:
        msg = f"{option} is {value!r:.80}: expected {_EXPECTED[option]}"
        raise ConfigError(msg) from error


def _check_gpu(config: CacheConfig) -> None:
    if config.enable_gpu and not config.load_async:
        raise ConfigError(
            "load_async is false, but a GPU loads beside the engine's steps: remove it"
        )


def _check_weight_version(config: CacheConfig) -> None:
    if config.trust_weight_version and not config.weight_version:
        raise ConfigError(
            "trust_weight_version is true without weight_version: set both, or neither"
        )


def _check_ssd(config: CacheConfig) -> None:
    """Refuse half an SSD tier, and directories that depend on where the engine was started."""
    try:
        directories = config.ssd_directories
    except RuntimeError as error:
        msg = f"ssd_cache_dir is {config.ssd_cache_dir!r:.80}, but there is no such home directory"
        raise ConfigError(msg) from error
    for directory in directories:
        if not directory.is_absolute() or "\0" in str(directory):
            expected = "expected a path that begins with / and has no NUL"
            msg = f"ssd_cache_dir names {str(directory)!r:.80}: {expected}"
            raise ConfigError(msg)
    if config.ssd_cache_gb is None and directories:
        raise ConfigError("ssd_cache_dir is set without ssd_cache_gb: set both, or neither")
    if config.ssd_cache_gb is not None and not directories:
        raise ConfigError("ssd_cache_gb is set without ssd_cache_dir: set both, or neither")
    if config.ssd_cache_gb is None and config.ssd_directory_cap_gb is not None:
        raise ConfigError(
            "ssd_directory_cap_gb is set without ssd_cache_gb: remove it, or set both"
        )
