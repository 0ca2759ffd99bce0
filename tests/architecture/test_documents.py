"""What the documents name is there: folders and files, in backticks and in links."""

import re

import pytest

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "flexkv_core/README.md", "docs")
PATH = re.compile(r"`((?:[\w.]+/)+(?:[\w]+\.(?:py|md))?)`|\]\(((?!https?:|#)[^)#]+)\)")
ROOTS = ("", "flexkv_core", "flexkv_connectors", "flexkv_core/control", "flexkv_core/data")


def paths_in(text):
    """Return the paths that a document names, relative to the root, the core or the document."""
    return [quoted or linked for quoted, linked in PATH.findall(text)]


@pytest.fixture
def documents(root):
    listed = [root / name for name in DOCUMENTS]
    return [path for one in listed for path in (one.glob("*.md") if one.is_dir() else [one])]


def test_every_path_that_a_document_names_exists(root, documents):
    missing = {
        (str(document.relative_to(root)), path)
        for document in documents
        for path in paths_in(document.read_text())
        if not any(
            (start / path).exists() for start in [*(root / name for name in ROOTS), document.parent]
        )
    }
    assert missing == set()


def test_paths_are_seen_in_backticks_and_in_links():
    text = "See `control/index/` and `data/worker.py`, [this](docs/glossary.md) and [that](https://x.y/z)."
    assert paths_in(text) == ["control/index/", "data/worker.py", "docs/glossary.md"]
