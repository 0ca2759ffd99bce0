"""Reads a file of options: YAML or JSON, without features that only attacks and mistakes use.

The author of the file is trusted, but it may be the wrong file: whatever it is, reading it ends at
once, with options or an error of one sentence.
"""

import json
import os
import stat
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import override

from flexkv_core.excerpt import clipped, excerpt

__all__ = ["read_options"]

_MAX_BYTES = 1 << 16


def read_options(path: Path) -> Mapping[str, object]:
    """Return the options in a file, as they are written; none for an empty one.

    Raises:
        OSError: It cannot be read; `strerror` is for people.
        ValueError: It is not a mapping in YAML, or in JSON if its name ends in `.json`, or it sets
            something twice.
    """
    text = _read_text(path)
    try:
        # JSON needs its own parser: YAML rejects tabs.
        options = _parse_json(text) if path.suffix == ".json" else _parse_yaml(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(options, dict):
        msg = (
            f"it holds a {type(options).__name__} at its top level: expected options with their "
            "values, such as 'cpu_cache_gb: 16'"
        )
        raise ValueError(msg)  # noqa: TRY004 it is about the content of the file
    return options


def _read_text(path: Path) -> str:
    """Read a small plain file; anything else fails without waiting."""
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "it is not a plain file")
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise OSError(0, f"it is larger than {_MAX_BYTES} bytes")
    return content.decode("utf-8")


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; if it is a pipe, without waiting for its other end."""
    return os.open(path, flags | os.O_NONBLOCK)


def _parse_json(text: str) -> object:
    parsed: object = json.loads(text, object_pairs_hook=_once_each)
    return parsed


def _parse_yaml(text: str) -> object:
    try:
        loaded: object = yaml.load(text, _PlainLoader)  # noqa: S506 it is a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        msg = f"{error.problem}{line}"
        raise ValueError(msg) from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    return {} if loaded is None else loaded


class _PlainLoader(yaml.SafeLoader):
    """YAML without anchors, aliases, tags and repeated names.

    A few lines with aliases can expand to gigabytes, and some tags raise arbitrary exceptions.
    """

    @override
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise yaml.composer.ComposerError(
                None, None, "anchors, aliases and tags are not allowed", event.start_mark
            )
        return super().compose_node(parent, index)

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        return _once_each(self.construct_pairs(node, deep=True))


def _once_each(pairs: Iterable[tuple[object, object]]) -> dict[Hashable, Any]:
    """Return names with their values.

    Raises:
        ValueError: A name is set twice: parsers do not agree on which one counts.
    """
    options: dict[Hashable, Any] = {}
    for key, value in pairs:
        name = key if isinstance(key, str) else excerpt(key)
        if name in options:
            msg = f"it sets {clipped(name)} twice"
            raise ValueError(msg)
        options[name] = value
    return options
