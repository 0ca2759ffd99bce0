"""Slabs as engines leave them, built from the format alone; the command, run in this process."""

import dataclasses
import fcntl
import json
import os
from contextlib import contextmanager
from hashlib import sha256
from types import SimpleNamespace

import pytest

from flexkv_core.block.layout import Column
from flexkv_core.cli import ls, slab_reader, verify
from flexkv_core.cli.main import main
from flexkv_core.data.tiers.ssd.format import (
    PAGE_BYTES,
    CellHeader,
    Superblock,
    checksum,
    column_identity,
    slot_bytes,
)
from flexkv_core.testing import namespaces

CELL_BYTES = 2 * PAGE_BYTES


def make_namespace(**changes):
    """Return the namespace of a model of a size that users have."""
    fields = {
        "model": "hub:org/model@0123456789abcdef0123456789abcdef01234567",
        "num_layers": 32,
        "num_kv_heads": 8,
        "key_head_size": 128,
        "value_head_size": 128,
        "block_tokens": 64,
        "cell_heads": 4,
        "cell_layers": 32,
    }
    return namespaces.make_namespace(**fields | changes)


def make_key(number):
    return sha256(str(number).encode()).digest()


class SlabWriter:
    """Makes one slab file and writes into it."""

    def __init__(self, directory, *, namespace=None, head=0, name="engine-0.slab", **superblock):
        self.namespace = namespace or make_namespace()
        self.column = Column(first_head=head, num_heads=4, first_layer=0, num_layers=32)
        generation = superblock.get("generation", "")
        self.identity = column_identity(self.namespace, self.column, generation)
        self.cell_bytes = superblock.get("cell_bytes", CELL_BYTES)
        fields = {
            "namespace": self.namespace,
            "column": self.column.name,
            "identity": self.identity.hex(),
            "cell_bytes": self.cell_bytes,
        }
        self.superblock = Superblock(**fields | superblock)
        folder = directory / self.namespace.short / self.column.name
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        folder.parent.chmod(0o700)
        self.path = folder / name
        self.path.touch(0o600)
        self.write_at(0, self.superblock.pack())

    def offset(self, slot):
        return PAGE_BYTES + slot * slot_bytes(self.cell_bytes)

    def write_at(self, offset, content):
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(content)

    def flip(self, offset, bit=0):
        [byte] = self.path.read_bytes()[offset : offset + 1]
        self.write_at(offset, bytes([byte ^ 1 << bit]))

    def write_cell(self, slot, number, parent=None, **header):
        """Write block `number`; fields of `header` are lies."""
        payload = (make_key(number) * (self.cell_bytes // 32 + 1))[: self.cell_bytes]
        fields = {
            "identity": self.identity,
            "key": make_key(number),
            "parent": None if parent is None else make_key(parent),
            "payload_bytes": self.cell_bytes,
            "payload_checksum": checksum(payload),
        }
        page = CellHeader(**fields | header).pack()
        content = (page + payload).ljust(slot_bytes(self.cell_bytes), b"\0")
        self.write_at(self.offset(slot), content)

    def write_chain(self, num_cells):
        """Fill the first slots with blocks of one prompt."""
        for slot in range(num_cells):
            self.write_cell(slot, slot, parent=slot - 1 if slot else None)
        return self

    def resize(self, num_slots):
        os.truncate(self.path, self.offset(num_slots))
        return self

    @contextmanager
    def in_use(self):
        """Hold the lock that an engine would hold."""
        with self.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield


@pytest.fixture
def make_slab(tmp_path):
    """Makes a slab in the directory of the test."""

    def make(directory=tmp_path, **options):
        return SlabWriter(directory, **options)

    return make


@pytest.fixture
def namespace_with():
    return make_namespace


@pytest.fixture
def flexkv(capsys):
    """Runs the command; returns its exit status and what it wrote, also as JSON where it is."""

    def run(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        report = json.loads(written.out) if "--json" in arguments and written.out else None
        return SimpleNamespace(status=status, out=written.out, err=written.err, json=report)

    return run


@pytest.fixture
def problems(flexkv, tmp_path):
    """Runs fsck; returns what it found as (kind, slot)."""

    def run(*arguments):
        slabs = flexkv("fsck", tmp_path, "--json", *arguments).json["slabs"]
        return [(found["kind"], found["slot"]) for slab in slabs for found in slab["problems"]]

    return run


@pytest.fixture
def mebibyte_slabs(monkeypatch):
    """What a file takes on the disk differs, and is known late: here it is 1 MiB for each slab."""

    def read_slab(*arguments, **options):
        slab = slab_reader.read_slab(*arguments, **options)
        return dataclasses.replace(slab, bytes_on_disk=2**20)

    for module in (ls, verify):
        monkeypatch.setattr(module, "read_slab", read_slab)


@pytest.fixture
def contents(tmp_path):
    """Returns all files there are, with what is in them and their times of change."""

    def read():
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    return read
