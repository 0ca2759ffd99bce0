"""Our storage as a case of the contract."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from controller_rig import ControllerRig
from typing_extensions import override

from flexkv_connectors.testing.hicache_storage import StorageCase

__all__ = ["OurCase"]


class OurCase(StorageCase):
    """Ours, over a directory."""

    def __init__(self, rig: ControllerRig, directory: Path) -> None:
        self.rig, self.directory, self.storage = rig, directory, rig.storage

    @override
    def indices(self, page_ids: Sequence[int]) -> torch.Tensor:
        return self.rig.indices(page_ids)

    @override
    def page(self, page_id: int) -> bytes:
        return self.rig.page_bytes(page_id)

    @override
    def damage(self) -> None:
        for slab in self.directory.rglob("*.slab"):
            with slab.open("r+b") as file:
                for offset in range(4096 + 4096 + 100, slab.stat().st_size, 4096):
                    file.seek(offset)
                    file.write(b"damage")

    @override
    def cut(self) -> None:
        for slab in self.directory.rglob("*.slab"):
            os.truncate(slab, 4096 + 4096 + 100)

    @override
    def attach_again(self) -> None:
        self.rig.attach_again()
        self.storage = self.rig.storage
