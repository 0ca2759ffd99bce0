"""All options of a user. A `CacheConfig` never changes after parsing."""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from flexkv_core.errors import ConfigError
from flexkv_core.event_options import EventOptions, decoded
from flexkv_core.excerpt import clipped, excerpt
from flexkv_core.upstream_options import UPSTREAM_OPTIONS, is_on, why_not

__all__ = ["CacheConfig", "check_option", "parse_config"]

_MAX_GB = 65536
_MAX_BLOCK_TOKENS = 16384
_MAX_TOKENS = 10**9
_MAX_THREADS = 256
_MAX_TP = 1024
_MAX_WAIT_S = 3600
_MAX_STAGING_MB = 65536
_MAX_NAME = 256
_MAX_DIRECTORIES = 256
_MAX_PATHS = 4096
"""Characters of a path, or of a text with several."""

_MAX_OPTION = 64
"""Characters of an unknown option's name that may still be a misspelling of ours."""

_MIN_LIKENESS = 0.75
_OTHER_SEPARATOR = re.compile(r"[,:|&\s]\s*[/~]")
"""Separators between paths in other programs' lists; spaces around ; are fine."""

_Size = Annotated[float, Meta(gt=0, le=_MAX_GB)]
_Name = Annotated[str, Meta(pattern=r"\A[^\ud800-\udfff]*\Z", max_length=_MAX_NAME)]
"""Text that can be encoded in UTF-8, since it goes into digests."""

_Path = Annotated[str, Meta(max_length=_MAX_PATHS)]
_Paths = Annotated[tuple[_Path, ...], Meta(max_length=_MAX_DIRECTORIES)]


class CacheConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All options, with their defaults. Options named as in FlexKV mean the same here.

    In a file or the engine's own options, null and "" stand for the default; an empty environment
    variable is ignored.
    """

    cpu_cache_gb: _Size | None = None
    """Host memory for blocks in GiB, for all ranks of a server on one node together; None sizes it
    by the free memory (`host_memory.default_cache_bytes`)."""

    ssd_cache_gb: Annotated[float, Meta(ge=0, le=_MAX_GB)] | None = None
    """Space for blocks on SSD in GiB, for all ranks and directories of an engine together; None for
    no SSD tier. As in FlexKV, 0 also means no SSD tier, even if directories are set."""

    ssd_cache_dir: _Path | _Paths | None = None
    """Directories of the SSD tier, one or more: a list, or text with `;` between them."""

    ssd_directory_cap_gb: _Size | None = None
    """Most that all engines together may store in one of these directories, in GiB; None limits
    only what earlier engines left behind."""

    promotion_timeout_s: Annotated[float, Meta(ge=0, le=_MAX_WAIT_S)] = 5.0
    """The longest that a request waits for blocks from SSD, in seconds; 0 never waits."""

    block_tokens: Annotated[int, Meta(ge=1, le=_MAX_BLOCK_TOKENS)] | None = None
    """Tokens in a block, the unit of reuse: a multiple of the engine's own page; None takes 64, or
    a number near it that is a multiple."""

    block_format: Literal["cells", "native"] = "cells"
    """How blocks are stored: as cells, which every engine reads, or, in SGLang, in the layout of
    its pages: nothing is converted or copied on the way, but no other engine can read them."""

    eviction_policy: Literal["lru", "s3fifo"] = "lru"

    namespace: _Name = ""
    """The user's own keyspace: engines that set different ones share no block."""

    weight_version: _Name = ""
    """The user's name for the weights. Blocks saved under it after the engine was told to change
    its weights in place are found again by later engines; without a name they are not."""

    trust_weight_version: bool = False
    """Trust `weight_version` alone to tell the weights apart, and read none of their files."""

    media_ids_are_hashes: bool = False
    """Clients send no `uuid` with their media, so that identifiers are hashes of content: only then
    are blocks that contain or follow media stored outside the process."""

    max_tp: Annotated[int, Meta(ge=1, le=_MAX_TP)] | None = None
    """Largest tensor-parallel degree among the engines that share blocks; None: this engine's."""

    load_async: bool = True
    """Load in the background while other requests run, not within the engine's step."""

    min_load_tokens: Annotated[int, Meta(ge=0, le=_MAX_TOKENS)] = 0
    """A hit of fewer tokens is recomputed; 0 loads every hit of one block or more."""

    copy_threads: Annotated[int, Meta(ge=1, le=_MAX_THREADS)] | None = None
    """Threads that copy between engine pages and host memory on CPU engines; None chooses by the
    number of cores."""

    use_hugepage_cpu_buffer: bool = False
    """Use huge pages for the host tier."""

    enable_gpu: bool = False
    """Serve engines whose KV is on a GPU; off by default as long as it has not run on a GPU."""

    gpu_staging_mb: Annotated[float, Meta(gt=0, le=_MAX_STAGING_MB)] | None = None
    """Staging memory on each GPU in MiB; None takes the blocks that a step of the engine computes
    and a quarter more, or less if little is free."""

    events: EventOptions | None = None
    """Publish what is stored and removed, for routers, where the engine has no publisher that does
    it; None publishes nothing."""

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
        return _in_bytes(self.ssd_cache_gb or None)

    @property
    def ssd_directory_cap_bytes(self) -> int | None:
        """`ssd_directory_cap_gb` in bytes."""
        return _in_bytes(self.ssd_directory_cap_gb)

    @property
    def ssd_directories(self) -> tuple[Path, ...]:
        """The distinct directories of `ssd_cache_dir`, `~` expanded; empty for no SSD tier."""
        written = () if self.ssd_cache_gb == 0 else self.ssd_cache_dir or ()
        names = written.split(";") if isinstance(written, str) else written
        named = [Path(name.strip()).expanduser() for name in names if name.strip()]
        return tuple(dict.fromkeys(named))


def _in_bytes(size_gb: float | None) -> int | None:
    return None if size_gb is None else int(size_gb * 2**30)


_YES_OR_NO = "true or false"
_SIZE = f"a size in GiB above 0 and up to {_MAX_GB}"
_TEXT = f"text of {_MAX_NAME} characters at most (in quotes if it looks like a number)"
_EXPECTED: Mapping[str, str] = {
    "cpu_cache_gb": f"{_SIZE}, such as 16 or 0.5",
    "ssd_cache_gb": f"{_SIZE}, such as 500; or 0 for no SSD tier",
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
    "min_load_tokens": f"a whole number of tokens from 0 to {_MAX_TOKENS}",
    "copy_threads": f"a number of threads from 1 to {_MAX_THREADS}",
    "use_hugepage_cpu_buffer": _YES_OR_NO,
    "enable_gpu": _YES_OR_NO,
    "gpu_staging_mb": f"a size in MiB above 0 and up to {_MAX_STAGING_MB}, such as 1024",
    "events": (
        "endpoint, such as 'tcp://*:5557', and if wanted replay_endpoint, buffer_steps, topic and "
        "format ('array' or 'map')"
    ),
}


def parse_config(*layers: Mapping[str, object]) -> CacheConfig:
    """Return the configuration of all `layers`; each overrides those before it.

    Values may be text, as environment variables are: "0.5", "64", "true", "1". None and "" give
    an option its default, even if an earlier layer has set it.

    Raises:
        ConfigError: An option is unknown, its value cannot be used, or it contradicts another;
            one sentence, however long the value.
    """
    merged: dict[str, object] = {}
    for layer in layers:
        merged |= layer
    for option in merged:
        check_option(option)
    values = {name: value for name, value in merged.items() if value is not None and value != ""}
    if "events" in values:
        values["events"] = decoded(values["events"])
    for option, value in values.items():
        _check_value(option, value)
    ours = {name: value for name, value in values.items() if name in _EXPECTED}
    config = msgspec.convert(ours, CacheConfig, strict=False)
    _check_ssd(config)
    _check_enable_ssd(values.get("enable_ssd"), config)
    _check_gpu(config)
    _check_weight_version(config)
    return config


def check_option(option: str, spell: Callable[[str], str] = str) -> None:
    """Reject an unknown option.

    Args:
        option: Its name.
        spell: Spells the name of an option as in the place where it was set.

    Raises:
        ConfigError: Neither we nor FlexKV know it; suggests the likely one, or lists all.
    """
    if option in _EXPECTED or option in UPSTREAM_OPTIONS:
        return
    likely = _likely_option(option) if len(option) <= _MAX_OPTION else None
    advice = (
        f"did you mean {spell(likely)}?"
        if likely
        else f"expected one of {', '.join(spell(known) for known in _EXPECTED)}"
    )
    msg = f"unknown option {clipped(spell(option))}: {advice}"
    raise ConfigError(msg)


def _likely_option(option: str) -> str | None:
    """Return the option that `option` misspells, never one of another meaning."""
    words = re.split(r"[\W_]+", option.lower())
    for known in _EXPECTED:
        known_words = known.split("_")
        if "".join(words) == "".join(known_words):
            return known
        if len(words) == len(known_words) and all(map(_is_misspelled, words, known_words)):
            return known
    return None


def _is_misspelled(word: str, known: str) -> bool:
    """Return whether `word` is `known` or a typo of it: `cpu` is not `gpu`, nor `sync` `async`."""
    likeness = difflib.SequenceMatcher(None, word, known).ratio()
    is_like = word[:1] == known[:1] and likeness >= _MIN_LIKENESS
    return is_like or sorted(word) == sorted(known)


def _check_value(option: str, value: object) -> None:
    """Reject a `value` that `option` does not accept."""
    if option in UPSTREAM_OPTIONS:
        reason = why_not(option, value)
    elif _takes(option, value):
        reason = None
    else:
        reason = f"is {excerpt(value)}: expected {_EXPECTED[option]}"
    if reason is not None:
        msg = f"{option} {reason}"
        raise ConfigError(msg)


def _takes(option: str, value: object) -> bool:
    if isinstance(value, str) and len(value) > _MAX_PATHS:
        return False
    try:
        msgspec.convert({option: value}, CacheConfig, strict=False)
    except (msgspec.ValidationError, OverflowError):
        return False
    return True


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
    """Reject an incomplete SSD tier, and directories that depend on where the engine starts."""
    if config.ssd_cache_gb == 0:
        return
    _check_paths(config)
    if config.ssd_cache_gb is None and config.ssd_directories:
        raise ConfigError("ssd_cache_dir is set without ssd_cache_gb: set both, or neither")
    if config.ssd_cache_gb is not None and not config.ssd_directories:
        raise ConfigError("ssd_cache_gb is set without ssd_cache_dir: set both, or neither")
    if config.ssd_cache_gb is None and config.ssd_directory_cap_gb is not None:
        raise ConfigError(
            "ssd_directory_cap_gb is set without ssd_cache_gb: remove it, or set both"
        )


def _check_paths(config: CacheConfig) -> None:
    """Reject values that are no path, or that their author meant as several."""
    written = config.ssd_cache_dir
    names = written.split(";") if isinstance(written, str) else ()
    if any(_OTHER_SEPARATOR.search(name.strip()) for name in names):
        msg = (
            f"ssd_cache_dir is {excerpt(written)}: expected ; between directories, or a list of "
            "them if one is really called that"
        )
        raise ConfigError(msg)
    try:
        directories = config.ssd_directories
    except (RuntimeError, ValueError) as error:
        msg = f"ssd_cache_dir is {excerpt(written)}, but there is no such home directory"
        raise ConfigError(msg) from error
    for directory in directories:
        if not _is_path(directory):
            expected = "expected a path that begins with / and has no NUL"
            msg = f"ssd_cache_dir names {excerpt(str(directory))}: {expected}"
            raise ConfigError(msg)


def _is_path(directory: Path) -> bool:
    """Return whether a path is absolute, and one that the system can open."""
    try:
        return directory.is_absolute() and b"\0" not in os.fsencode(directory)
    except UnicodeEncodeError:
        return False


def _check_enable_ssd(switch: object, config: CacheConfig) -> None:
    """Reject FlexKV's own switch of the tier if it contradicts the size."""
    if switch is None or is_on(switch) == (config.ssd_cache_bytes is not None):
        return
    if is_on(switch):
        raise ConfigError(
            "enable_ssd is true without ssd_cache_gb and ssd_cache_dir: set both, or remove it"
        )
    msg = f"enable_ssd is false, but ssd_cache_gb is {config.ssd_cache_gb:g}: remove one of them"
    raise ConfigError(msg)
