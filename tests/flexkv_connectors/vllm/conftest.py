"""Adapters as they lie on a disk, and an engine that is told of them."""

import hashlib
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from flexkv_connectors.vllm.adapters import Adapters
from flexkv_core.identity.as_read import Judge, Mounts

SETTINGS = bytes(32)


def lora(path, number=1, name="adapter", **more):
    """Return vLLM's words for an adapter."""
    fields = {"load_inplace": False, "is_3d_lora_weight": False} | more
    return SimpleNamespace(lora_name=name, lora_int_id=number, lora_path=str(path), **fields)


def write_adapter(folder, weights=b"weights"):
    """Write the files of an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def write_to_hub(hub, name, files, commit="1" * 40):
    """Write files as the hub's client keeps them; without a reference."""
    repository = hub / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    for file in Path(files).iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)
    return repository


class Followed(Adapters):
    """Adapters whose digests are waited for."""

    def digest(self, lora):
        """Serve one request; return what stands for the adapter in its keys, None if nothing."""
        adapter = self.begin(lora)
        self.wait()
        is_held = self.holds(adapter)
        self.end(lora, adapter, is_computed=True)
        self.wait()
        return adapter.digest if is_held else None

    def load(self, lora):
        """Load an adapter ahead of its requests."""
        self.begin_load(lora)
        self.end_load(lora)

    def wait(self):
        deadline = time.monotonic() + 30
        while self.has_work:
            assert time.monotonic() < deadline
            time.sleep(0)


@pytest.fixture
def judge():
    """Judge for an engine on a machine whose files all are its own."""
    return Judge(0.0, Mounts("1 1 0:1 / / rw - ext4 /dev/x rw"))


@pytest.fixture
def hub(tmp_path):
    return tmp_path / "hub"


@pytest.fixture
def follow(judge, hub):
    """Return a function that follows the adapters of an engine."""
    return lambda settings=SETTINGS, **more: Followed(settings, hub, judge, **more)


@pytest.fixture
def adapters(follow):
    return follow()


@pytest.fixture
def folder(tmp_path):
    return write_adapter(tmp_path / "adapter")
