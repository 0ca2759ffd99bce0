"""What these tests share lies beside them, in no package."""

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parent))

from model_rig import STARTED_S, Times, add_to_hub

from flexkv_core.identity import as_read, identification
from flexkv_core.identity.stamps import Stamp


@pytest.fixture
def folder(tmp_path):
    """A model with two files of weights, a configuration and code in a subfolder."""
    path = tmp_path / "model"
    (path / "layers").mkdir(parents=True)
    (path / "config.json").write_text('{"rope_theta": 10000}')
    (path / "layers" / "attention.py").write_text("scale = 1\n")
    (path / "tokenizer.json").write_text("{}")
    for number in (1, 2):
        weights = random.Random(number).randbytes(50_000)
        (path / f"model-{number}.safetensors").write_bytes(weights)
    return path


@pytest.fixture
def hub(tmp_path, folder):
    """A hub cache that holds `folder` as org/model, branch main."""
    path = tmp_path / "hub"
    add_to_hub(path / "models--org--model", folder)
    return path


@pytest.fixture
def directory(tmp_path):
    """Where digests are remembered."""
    return tmp_path / "ssd"


@pytest.fixture(autouse=True)
def now(monkeypatch):
    """Lets the engines of these tests ask 100 s after their start what they have read."""
    clock = SimpleNamespace(time=lambda: STARTED_S + 100)
    monkeypatch.setattr(identification, "time", clock)
    return clock


@pytest.fixture
def times(monkeypatch):
    """Times of files that are other than the system says."""
    times, of = Times(), Stamp._of.__func__
    method = classmethod(lambda cls, path, found: times.apply(of(cls, path, found)))
    monkeypatch.setattr(Stamp, "_of", method)
    return times


@pytest.fixture
def mounted(monkeypatch, tmp_path):
    """Lets everything below `tmp_path` be on a file system of some kind."""

    def mount(kind):
        table = tmp_path / "mountinfo"
        table.write_text(
            f"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:9 / {tmp_path} rw shared:1 - {kind} b rw\n"
        )
        monkeypatch.setattr(as_read, "_MOUNTS", table)

    return mount
