import sys

import pytest

from flexkv_connectors import upstream_package


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder `flexkv` on the path, to be filled by the test."""
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "flexkv"
    folder.mkdir()
    return folder


def test_a_package_is_found_and_not_imported(folder):
    (folder / "__init__.py").write_text("raise AssertionError")
    assert upstream_package.is_installed()
    assert "flexkv" not in sys.modules


def test_a_folder_of_blocks_is_no_package(folder):
    (folder / "0.slab").touch()
    assert not upstream_package.is_installed()
