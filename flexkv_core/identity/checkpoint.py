"""Which files of a model decide its KV: a function of the model alone.

Weights, configurations and code. Engines choose weights in slightly different ways; where they
differ, every file that one of them would read counts, so that the identity covers all that is read.
Tokenizers, generation settings, documents and a second format of the same weights do not count:
copies that differ only in them are the same model.

The rules were read from the loaders of vLLM @ 0.32 and SGLang @ 0.5.23.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

__all__ = [
    "FROM_THE_CHECKPOINT",
    "Checkpoint",
    "adapter_files",
    "find_checkpoint",
    "is_commit",
    "model_files",
    "repository_of",
    "why_elsewhere",
]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD_OF_GGUF = re.compile(r"(.+)-\d{5}(-of-\d{5}\.gguf)")

_READ_AS_AUTO = frozenset(
    {"auto", "fastsafetensors", "hf", "instanttensor", "runai_streamer", "safetensors"}
)
_CHOICES = {"gguf": "*.gguf", "mistral": "consolidated*.safetensors", "pt": "*.pt"}
"""Load formats that choose their files by a pattern of their own."""

FROM_THE_CHECKPOINT = _READ_AS_AUTO | _CHOICES.keys()
"""Load formats that read all of a model from the folder of its configuration."""

_INSTEAD_OF_SAFETENSORS = ("*.bin", "*.pt", "*.pth", "*.gguf")
_LEFT_BY_TRAINING = (
    "optimizer.bin",
    "optimizer.pt",
    "scaler.pt",
    "scheduler.pt",
    "training_args.bin",
)
"""Endings of names that engines skip, and so do we."""

_MAKES_TOKENS = ("Tokenizer", "Processor", "Extractor")
"""Endings of `auto_map` classes that make tokens or images, but no KV."""

_INDEX = "model.safetensors.index.json"
_READ_BESIDE_AN_INDEX = ("consolidated*.safetensors", "mtp.safetensors")
"""Files that are read though no index names them: the first by vLLM's "auto", which prefers
Mistral's own format, the second by SGLang for GLM."""

_ENDINGS = (".bin", ".gguf", ".json", ".pt", ".pth", ".py", ".safetensors")
"""An entry with such an ending is assumed to be a file, without a stat."""

_OTHER_FORMATS = ("checkpoint-*", "coreml", "gguf", "metal", "onnx", "openvino", "original")
"""Folders inside a model in which no engine looks for weights."""

_CONFIGS = ("*config.json", "params.json")
_NOT_CONFIGS = frozenset({"generation_config.json", "tokenizer_config.json"})
_ADAPTER_CONFIGS = ("adapter_config.json", "added_tokens.json")
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")
"""vLLM reads only the first that exists."""

_OTHER_MODELS = ("audio_model_id", "text_model_id")
"""Settings of Ultravox that name repositories whose weights are also read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where an engine reads a model from."""

    model: str
    """A local folder or file, or a hub id, as the engine was given it."""

    revision: str | None = None
    """Branch, tag or commit of a hub id; None for "main"."""

    hub_cache: Path
    """The hub client's cache folder, into which the engine downloads this model."""

    load_format: str = "auto"
    """The engine's name of the format: vLLM and SGLang share them."""

    runs_code: bool = True
    """Whether the engine may run the model's own code."""

    weights: bool = True
    """Whether the weights are read from here and count. If not, configuration and code alone
    decide: the user has named the weights, or the engine reads them elsewhere."""


def find_checkpoint(model: str, revision: str | None = None, *, hub_cache: Path) -> Path | None:
    """Return the path of `model`'s files on this machine, None if they are not here.

    The arguments are those of `Checkpoint`. A revision stands for the commit that the hub's client
    last saw for it.
    """
    path = Path(model)
    if path.exists():
        return path
    repository = repository_of(model, hub_cache)
    path = repository / "snapshots" / _commit_of(repository, revision or "main")
    return path if path.exists() else None


def repository_of(model: str, hub_cache: Path) -> Path:
    """Return the folder of a hub id in the cache of the hub's client."""
    return hub_cache / f"models--{model.replace('/', '--')}"


def is_commit(revision: str) -> bool:
    """Return whether `revision` can mean only one state of a repository."""
    return _COMMIT.fullmatch(revision) is not None


def model_files(path: Path, load_format: str, *, weights: bool) -> list[Path]:
    """Return the files that decide a model's KV, sorted.

    Args:
        path: The model's folder, or the single file that is the model.
        load_format: As in `Checkpoint`.
        weights: As in `Checkpoint`.

    Raises:
        OSError: A folder cannot be read, or the weights are missing.
    """
    if not path.is_dir():
        return _shards_of(path) if weights else []
    files: list[Path] = []
    has_weights = False
    for folder, names in _folders(path, (os.path.realpath(path),)):
        is_top = folder == path
        chosen = set[str]()
        if weights and not _is_other_format(folder.relative_to(path)):
            chosen = _weights(folder, names, load_format if is_top else "auto")
            has_weights = has_weights or bool(chosen)
        if is_top or chosen:
            chosen |= _configs(names)
        chosen |= _matching(names, "*.py")
        files += (folder / name for name in chosen)
    if weights and not has_weights:
        msg = f"there are no weight files in {path}"
        raise FileNotFoundError(msg)
    return sorted(files)


def adapter_files(folder: Path) -> list[Path]:
    """Return the files that decide what a LoRA adds, sorted.

    Raises:
        OSError: The folder cannot be read.
    """
    names = _names(folder)
    chosen = _matching(names, *_ADAPTER_CONFIGS, "new_embeddings.*")
    chosen |= set([name for name in _ADAPTER_WEIGHTS if name in names][:1])
    return sorted(folder / name for name in chosen | _weights(folder, names, "auto"))


def why_elsewhere(path: Path, checkpoint: Checkpoint) -> str | None:
    """Return what the engine reads that is not among `model_files`, if anything.

    Returns:
        A clause for people, or None.

    Raises:
        OSError: A configuration cannot be read.
    """
    load_format, weights = checkpoint.load_format, checkpoint.weights
    if weights and load_format not in FROM_THE_CHECKPOINT:
        return f"load_format={load_format} does not say which weights are read: set weight_version"
    if not path.is_dir():
        return None
    for name in sorted(_configs(_names(path))):
        settings = _read_json(path / name)
        if weights and checkpoint.runs_code and _has_foreign_code(settings.get("auto_map")):
            return (
                f"{name} takes the model's code from another repository: put it beside the model, "
                "or set weight_version and trust_weight_version"
            )
        if weights and any(isinstance(settings.get(key), str) for key in _OTHER_MODELS):
            return (
                f"{name} takes weights from another repository: set weight_version and "
                "trust_weight_version"
            )
    return None


def _has_foreign_code(auto_map: object) -> bool:
    """Return whether classes that compute KV, unlike tokenizers, are in another repository."""
    classes = auto_map.items() if isinstance(auto_map, dict) else ()
    return any(
        "--" in name
        for kind, names in classes
        if not str(kind).endswith(_MAKES_TOKENS)
        for name in _strings([names])
    )


def _commit_of(repository: Path, revision: str) -> str:
    """Return the commit that the hub's client last saw for `revision`, else `revision`."""
    if is_commit(revision):
        return revision
    reference = repository / "refs" / revision
    commit = reference.read_text("utf-8", "replace").strip() if reference.is_file() else ""
    return commit if is_commit(commit) else revision


def _folders(folder: Path, inside: tuple[str, ...]) -> Iterator[tuple[Path, list[str]]]:
    """Yield `folder` and those below it, each with the names of its files; skip hidden ones.

    Args:
        folder: Where to begin.
        inside: The real paths of `folder` and those above it: a link back to one is not followed.
    """
    names: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.name.startswith("."):
                # Following the many links of a hub's snapshot would cost a stat each.
                is_folder = not entry.name.endswith(_ENDINGS) and entry.is_dir()
                (folders if is_folder else names).append(entry.name)
    yield folder, names
    for name in folders:
        real = os.path.realpath(folder / name)
        if real not in inside:
            yield from _folders(folder / name, (*inside, real))


def _names(folder: Path) -> list[str]:
    _, names = next(_folders(folder, ()))
    return names


def _weights(folder: Path, names: list[str], load_format: str) -> set[str]:
    """Return the weights among the files of a folder, and their index."""
    pattern = _CHOICES.get(load_format)
    if pattern is not None:
        found = _matching(names, pattern)
    elif found := _matching(names, "*.safetensors"):
        pattern = "*.safetensors"
        if _INDEX in names:
            indexed = _weight_map(folder / _INDEX)
            found &= (indexed or found) | _matching(found, *_READ_BESIDE_AN_INDEX)
        # Some models read one by a name of their own, such as mask_embedding.pt.
        found |= _matching(names, "*.pt")
    else:
        choices = ((pattern, _matching(names, pattern)) for pattern in _INSTEAD_OF_SAFETENSORS)
        pattern, found = next((choice for choice in choices if choice[1]), ("", set()))
    return found | _matching(names, f"*{Path(pattern).suffix}.index.json") if found else found


def _weight_map(index: Path) -> set[str]:
    """Return the files that an index names; none if no engine could read it."""
    return set(_strings(_read_json(index).get("weight_map")))


def _configs(names: Iterable[str]) -> set[str]:
    return _matching(names, *_CONFIGS) - _NOT_CONFIGS


def _matching(names: Iterable[str], *patterns: str) -> set[str]:
    """Return the names that match a pattern and are not leftovers of training."""
    return {
        name
        for name in names
        if not name.endswith(_LEFT_BY_TRAINING) and any(fnmatch(name, p) for p in patterns)
    }


def _is_other_format(folder: Path) -> bool:
    return any(fnmatch(part, pattern) for part in folder.parts for pattern in _OTHER_FORMATS)


def _shards_of(path: Path) -> list[Path]:
    """Return a file, or all shards of its model if it is one of several."""
    match = _SHARD_OF_GGUF.fullmatch(path.name)
    if match is None:
        return [path]
    first, last = match.groups()
    pattern = re.compile(re.escape(first) + r"-\d{5}" + re.escape(last))
    return sorted(path.parent / name for name in _names(path.parent) if pattern.fullmatch(name))


def _read_json(path: Path) -> dict[str, object]:
    """Return the mapping in a JSON file, empty if there is none; as lenient as the engines."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _strings(value: object) -> Iterator[str]:
    """Yield the strings among the values of nested mappings and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
