"""Whether SGLang's keys of stored pages tell adapters, salts and extra keys apart: they are made.

The functions that make keys are taken out of the engine's sources, and run with Python's SHA-256 in
place of the one that SGLang compiles.
"""

import __future__

import ast
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__all__ = ["troubles"]

PAGE_SIZES = (1, 64)
NAMESPACES = (
    (None, None),
    ("one", None),
    ("other", None),
    (None, "one"),
    (None, "other"),
    ("one", "other"),
    ("other", "one"),
    ("oneother", None),
)
"""An extra key, which the name of an adapter is a part of, and a salt."""

HOME = "sglang/srt/mem_cache/utils.py"
MAKER, OLD_MAKER = "get_storage_hash_str", "get_hash_str"
"""What prompts are looked for by; the old one to 0.5.19."""

NODE_MAKER = "compute_node_hash_values"
"""What pages are stored by."""

NEEDED = (MAKER, OLD_MAKER, NODE_MAKER, "storage_namespace_seed")
PLAIN = frozenset({"get_hash_str", "get_native_hash", "hash_page"})
"""Functions that make keys without a namespace, unless they go on from a key that has one."""

KNOWN_PLAIN = {
    "sglang/srt/disaggregation/decode_kvcache_offload_manager.py": 1,  # from the namespace's seed
    "sglang/srt/mem_cache/radix_cache.py": 1,  # `hash_page` itself, which nobody calls; to 0.5.20
    HOME: 3,  # the makers, and keys of events, which storages never see
}
"""Calls of them by file."""


class _Key(list[int]):
    """Stands in for SGLang's key of a prompt."""

    def __init__(self, namespace: tuple[str | None, str | None]) -> None:
        super().__init__(range(128))
        self.extra_key, self.cache_salt = namespace


def troubles(folder: Path) -> list[str]:
    """Say what lets one namespace find the pages of another.

    Args:
        folder: Holds the engine's package.
    """
    makers = _makers(folder / HOME)
    if OLD_MAKER not in makers or NODE_MAKER not in makers:
        return [f"{HOME} has no {OLD_MAKER} and {NODE_MAKER}: how are keys of storages made?"]
    search = makers.get(MAKER, makers[OLD_MAKER])
    try:
        alike = [line for size in PAGE_SIZES for line in _alike(search, makers[NODE_MAKER], size)]
    except (AttributeError, NameError, TypeError) as error:
        alike = [f"keys of storages are made in a way that is not known: {error}"]
    return [
        *alike,
        *_plain_calls(folder),
        *_without_adapter(folder / "sglang/srt/managers/schedule_batch.py"),
    ]


def _makers(path: Path) -> dict[str, Any]:
    """Return the functions that make keys, as the engine's source defines them."""
    tree = ast.parse(path.read_text() if path.is_file() else "")
    body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in NEEDED]
    flags = __future__.annotations.compiler_flag
    code = compile(ast.Module(body, []), str(path), "exec", flags=flags)
    found = {"hashlib": hashlib, "get_native_hash": _hash}
    exec(code, found)
    return {name: found[name] for name in NEEDED if name in found}


def _hash(tokens: Sequence[int], prior: bytes | None, page_size: int | None) -> list[str]:
    """Hash pages as SGLang's own code does: each with the hash before it."""
    assert page_size is not None, "a key is asked for without the size of its page"
    keys = []
    for first in range(0, len(tokens), page_size):
        page = tokens[first : first + page_size]
        raw = b"".join(token.to_bytes(4, "little") for token in page)
        prior = hashlib.sha256((prior or b"") + raw).digest()
        keys.append(prior.hex())
    return keys


def _alike(search: Callable[..., Any], store: Callable[..., Any], size: int) -> Iterator[str]:
    """Yield if namespaces have a key in common, and if one is searched by other keys than stored.

    Args:
        search: Makes the keys of a prompt.
        store: Makes the keys of a node of the prefix tree.
        size: Tokens of a page.
    """
    owner: dict[str, object] = {}
    for namespace in NAMESPACES:
        key = _Key(namespace)
        keys = search(key, None, page_size=size)
        if keys != store(SimpleNamespace(key=key, parent=None), size):
            yield f"in pages of {size} tokens, keys to store by are not those to search by"
            return
        others = {owner.setdefault(one, namespace) for one in keys} - {namespace}
        if others:
            yield f"in pages of {size} tokens, {namespace} has keys of {min(others, key=str)}"
            return


def _plain_calls(folder: Path) -> Iterator[str]:
    """Yield files that make keys without asking for the namespace."""
    for path in sorted(folder.glob("sglang/srt/**/*.py")):
        source = path.read_text()
        if not any(f"{name}(" in source for name in PLAIN):
            continue
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
        num_calls = sum(ast.unparse(call.func).rpartition(".")[2] in PLAIN for call in calls)
        name = path.relative_to(folder).as_posix()
        if num_calls > KNOWN_PLAIN.get(name, 0):
            yield f"{name} makes keys without a namespace"


def _without_adapter(path: Path) -> Iterator[str]:
    """Yield if a request's adapter is not a part of its extra key."""
    tree = ast.parse(path.read_text() if path.is_file() else "")
    sums = (node for node in ast.walk(tree) if isinstance(node, ast.BinOp))
    if not any(isinstance(one.right, ast.Name) and one.right.id == "lora_id" for one in sums):
        yield f"{path.name} does not add the adapter to the extra key"
