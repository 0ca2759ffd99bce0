"""Which weights a block was computed with.

A model from the hub is its id and commit. A local folder is a digest of its configuration, of each
weight file's size and outline, and of one page of every tensor at an offset keyed by the tensor's
name: other weights under the same path get another identity without reading all of them. Nothing
is unpickled, and no network is asked.
"""

import logging
import os
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import msgspec

from flexkv_core.errors import ConfigError

__all__ = ["find_checkpoint", "identify_adapter", "identify_model"]

logger = logging.getLogger(__name__)

_CONFIG_NAMES = frozenset(
    {
        "adapter_config.json",
        "config.json",
        "hf_quant_config.json",
        "params.json",
        "quant_config.json",
        "quantize_config.json",
    }
)
_WEIGHT_SUFFIXES = frozenset({".bin", ".gguf", ".pt", ".pth", ".safetensors"})
_WEIGHT_BYTES = 64 * 2**20
"""A file of this size holds weights, whatever its name."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SNAPSHOT = re.compile(r"models--(.+)/snapshots/([0-9a-f]{40})")
_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format itself."""

_TAIL_BYTES = 256 * 2**10
_STRATA = 256
_PAGE_BYTES = 4096
_SMALL_PAGE_BYTES = 512
_MANY_TENSORS = 16384
"""Above this, small pages: 91280 tensors in 163 files took 0.3 s with them and 0.6-1.0 s with
pages of 4 KiB (files in the page cache, 2 cores, November 2026)."""

_THREADS = 8
"""Reads in flight, for weights that are not in the page cache."""


class _WeightFile(NamedTuple):
    path: Path
    size: int
    outline: bytes
    """What the format says of the content as a whole."""

    spans: dict[str, tuple[int, int]]
    """Named half-open byte ranges, each to be sampled."""


class _TensorEntry(msgspec.Struct):
    """One entry of a safetensors header; `__metadata__` decodes to an empty range."""

    data_offsets: tuple[int, int] = (0, 0)


_header_decoder = msgspec.json.Decoder(dict[str, _TensorEntry])


def identify_model(model: str, revision: str | None = None, *, hub_cache: Path) -> str:
    """Return a name that two engines share exactly if their weights are the same.

    Args:
        model: A local folder or file, or a hub id, as the engine was given it.
        revision: Branch, tag or commit of a hub id; None for "main".
        hub_cache: The hub client's folder on this machine (`env.hub_cache_folder`), in which a
            revision is resolved to its commit.

    Raises:
        ConfigError: If a local model cannot be read.

    Cost: at most 4 KiB a tensor and 512 bytes a tensor of very large models; 0.3 s for 91280
    tensors in the page cache.
    """
    path, commit = _locate(model, revision, hub_cache)
    if not path.exists():
        return f"hub:{model}@{commit}"
    try:
        return _hub_name(path) or f"local:{_digest(path).hex()}"
    except OSError as error:
        msg = f"model {path} cannot be read, so its blocks cannot be told from others': {error}"
        raise ConfigError(msg) from error


def find_checkpoint(model: str, revision: str | None = None, *, hub_cache: Path) -> Path | None:
    """Return where the files of `model` lie on this machine, None if they do not; as above."""
    path, _ = _locate(model, revision, hub_cache)
    return path if path.exists() else None


def identify_adapter(folder: str) -> bytes | None:
    """Return 32 bytes that identify a LoRA by its content, or None if it cannot be read.

    Requests whose adapter has no identity are neither loaded nor saved.

    Cost: as `identify_model`; call it once per adapter, not once per request.
    """
    try:
        return _digest(Path(folder))
    except OSError as error:
        logger.warning("adapter.unreadable folder=%s error=%s", folder, error)
        return None


def _locate(model: str, revision: str | None, hub_cache: Path) -> tuple[Path, str]:
    """Return where a model is, or would be; and its commit if it is one from the hub."""
    path = Path(model)
    if path.exists():
        return path, ""
    commit = _commit_of(model, revision or "main", hub_cache)
    return _repository(hub_cache, model) / "snapshots" / commit, commit


def _commit_of(model: str, revision: str, hub_cache: Path) -> str:
    """Return the commit that the hub's client last saw under `revision`, else `revision`."""
    if _COMMIT.fullmatch(revision):
        return revision
    reference = _repository(hub_cache, model) / "refs" / revision
    commit = reference.read_text("utf-8", "replace").strip() if reference.is_file() else ""
    if _COMMIT.fullmatch(commit):
        return commit
    logger.warning(
        "model.commit_unknown model=%s revision=%s: blocks outlive a change of this revision; name "
        "a commit",
        model,
        revision,
    )
    return revision


def _repository(hub_cache: Path, model: str) -> Path:
    return hub_cache / f"models--{model.replace('/', '--')}"


def _hub_name(folder: Path) -> str | None:
    """Return id and commit of a snapshot whose files are still the hub client's own links."""
    snapshot = folder.resolve()
    match = _SNAPSHOT.fullmatch("/".join(snapshot.parts[-3:]))
    if match is None or not all(path.is_symlink() for path in snapshot.iterdir() if _matters(path)):
        return None
    repository, commit = match.groups()
    return f"hub:{repository.replace('--', '/')}@{commit}"


def _matters(path: Path) -> bool:
    return _is_config(path) or _holds_weights(path)


def _is_config(path: Path) -> bool:
    return path.name in _CONFIG_NAMES or path.suffix == ".py"


def _holds_weights(path: Path) -> bool:
    return path.is_file() and (
        path.suffix in _WEIGHT_SUFFIXES or path.stat().st_size >= _WEIGHT_BYTES
    )


def _digest(path: Path) -> bytes:
    """Return the digest of a folder of weights, or of a single file of them.

    Raises:
        OSError: If something cannot be read, or there is nothing to tell the model by.
    """
    entries = [path] if path.is_file() else sorted(path.iterdir())
    parts: list[bytes] = []
    for config in filter(_is_config, entries):
        parts += (os.fsencode(config.name), config.read_bytes())
    with ThreadPoolExecutor(_THREADS) as pool:
        files = list(pool.map(_outline, filter(_holds_weights, entries)))
        many = sum(len(file.spans) for file in files) > _MANY_TENSORS
        page_bytes = _SMALL_PAGE_BYTES if many else _PAGE_BYTES
        samples = pool.map(lambda file: _sample(file, page_bytes), files)
        for file, sample in zip(files, samples, strict=True):
            parts += (os.fsencode(file.path.name), file.outline, b"%d" % file.size, sample)
    if not parts:
        msg = f"there are neither weights nor a configuration in {path}"
        raise FileNotFoundError(msg)
    if not files:
        logger.warning(
            "model.no_weights path=%s: it is told by its configuration alone",
            path,
        )
    digests = b"".join(sha256(part).digest() for part in parts)
    return sha256(b"flexkv-model-v1" + digests).digest()


def _outline(path: Path) -> _WeightFile:
    """Read what a weight file says about itself, and where its tensors lie.

    A file that is not in the safetensors format is cut into equal strata. Its tail is its outline:
    there a zip archive, which a torch checkpoint is, keeps a CRC of every tensor.
    """
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        header_bytes = int.from_bytes(os.pread(descriptor, 8, 0), "little")
        if header_bytes <= min(size, _MAX_HEADER_BYTES):
            header = os.pread(descriptor, header_bytes, 8)
            spans = _tensor_spans(header, size)
            if spans is not None:
                return _WeightFile(path, size, header, spans)
        tail = os.pread(descriptor, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
    bounds = [size * stratum // _STRATA for stratum in range(_STRATA + 1)]
    strata = {str(i): (bounds[i], bounds[i + 1]) for i in range(_STRATA)}
    return _WeightFile(path, size, tail, strata)


def _tensor_spans(header: bytes, size: int) -> dict[str, tuple[int, int]] | None:
    """Return where each tensor of a safetensors file lies, or None if it is no such file."""
    try:
        entries = _header_decoder.decode(header)
    except msgspec.DecodeError:
        return None
    first = 8 + len(header)
    spans = {
        name: (first + entry.data_offsets[0], first + entry.data_offsets[1])
        for name, entry in entries.items()
    }
    in_order = all(first <= start <= end <= size for start, end in spans.values())
    return spans if in_order else None


def _sample(file: _WeightFile, page_bytes: int) -> bytes:
    """Read one page of every span, at an offset that depends on the span's name alone."""
    pages = []
    with file.path.open("rb", buffering=0) as opened:
        for name, (start, end) in file.spans.items():
            room = max(0, end - start - page_bytes)
            offset = start + (room * zlib.crc32(name.encode()) >> 32)
            pages.append(os.pread(opened.fileno(), min(page_bytes, end - start), offset))
    return b"".join(pages)
