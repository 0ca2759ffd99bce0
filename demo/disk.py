"""The directory of the demo's SSD tier: made for it, damaged on purpose, removed at the end."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from demo.process import DemoError, uninterrupted
from flexkv_core.data.tiers.ssd.format import (
    PAGE_BYTES,
    SLAB_SUFFIX,
    CellHeader,
    Superblock,
    slot_bytes,
)

FLIPPED_BYTES = 64


@contextmanager
def ssd_directory(work: Path, num_bytes: int) -> Iterator[Path]:
    """Make a folder beside what else the demo writes, not in a `/tmp` that may be memory.

    Raises:
        DemoError: There is no room for `num_bytes` and as much again for others.
    """
    free_bytes, need_bytes = shutil.disk_usage(work).free, 2 * num_bytes
    if free_bytes < need_bytes:
        have, need = free_bytes / (1 << 30), need_bytes / (1 << 30)
        msg = f"{have:.1f} GiB are free on the disk of {work}, {need:.0f} GiB are needed"
        raise DemoError(msg)
    folder = tempfile.mkdtemp(prefix="ssd-", dir=work)
    try:
        yield Path(folder)
    finally:
        with uninterrupted():
            shutil.rmtree(folder, ignore_errors=True)


def flip_first_blocks(directory: Path) -> int:
    """Invert some bytes of the first block of every chat; return how many blocks were changed.

    Only payloads are changed, no header: what is wrong shows in the checksum alone. The server
    must not run.
    """
    num_flipped = 0
    for path in directory.rglob(f"*{SLAB_SUFFIX}"):
        with path.open("r+b") as slab:
            for offset in _first_payloads(slab):
                _invert(slab, offset)
                num_flipped += 1
            slab.flush()
            os.fsync(slab.fileno())
    return num_flipped


def _first_payloads(slab: BinaryIO) -> Iterator[int]:
    """Yield the middle of the payload of every cell that has no parent."""
    superblock = Superblock.unpack(slab.read(PAGE_BYTES))
    if superblock is None:
        msg = f"{slab.name} is no slab"
        raise DemoError(msg)
    size_bytes = os.fstat(slab.fileno()).st_size
    for slot in range(PAGE_BYTES, size_bytes, slot_bytes(superblock.cell_bytes)):
        slab.seek(slot)
        header = CellHeader.unpack(slab.read(PAGE_BYTES))
        if header is not None and header.parent is None:
            yield slot + PAGE_BYTES + header.payload_bytes // 2


def _invert(slab: BinaryIO, offset: int) -> None:
    slab.seek(offset)
    inverted = bytes(255 - byte for byte in slab.read(FLIPPED_BYTES))
    slab.seek(offset)
    slab.write(inverted)


def flexkv_ls(directory: Path) -> list[str]:
    """Return what the command `flexkv ls` prints."""
    return _run_flexkv("ls", directory, status=0)


def flexkv_fsck(directory: Path, num_bad: int) -> list[str]:
    """Return what the command `flexkv fsck` prints, which must be that `num_bad` cells are bad."""
    lines = _run_flexkv("fsck", directory, status=1)
    if not re.search(rf"\b{num_bad} problems\b", lines[-1]):
        msg = f"flexkv fsck says '{lines[-1]}', but {num_bad} blocks have been changed"
        raise DemoError(msg)
    return lines


def _run_flexkv(command: str, directory: Path, status: int) -> list[str]:
    # The module, not the command: it need not be on anybody's PATH.
    call = [sys.executable, "-m", "flexkv_core.cli", command, str(directory)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode != status:
        said = (done.stderr or done.stdout).strip().rpartition("\n")[2]
        msg = f"flexkv {command} ended with status {done.returncode}, expected {status}: {said}"
        raise DemoError(msg)
    return done.stdout.splitlines()
