"""Where the files of a LoRA are, and whether they have changed.

vLLM reads the name of an adapter as an absolute path, a path in the home folder or one from the
working directory, or else as a repository of the hub (`get_adapter_absolute_path` @ 0.28 to 0.33).
"""

import os
from pathlib import Path
from typing import NamedTuple

from flexkv_core.identity.as_read import FoundFile
from flexkv_core.identity.checkpoint import adapter_files, find_checkpoint, repository_of
from flexkv_core.identity.hashing import FileHasher, digest_of_files
from flexkv_core.identity.stamps import Paths, Stamp

__all__ = ["AdapterFiles", "find_files", "find_only_snapshot", "is_path"]


class AdapterFiles(NamedTuple):
    """The files that vLLM reads of an adapter, as they are at one moment."""

    folder: Path
    files: tuple[FoundFile, ...]
    stamps: frozenset[Stamp]
    """Stamps of the files, the folder and the links to them: a change alters one of these."""

    is_snapshot: bool
    """Whether it is a snapshot of the hub's client, which may add other files to the folder."""

    def have_changed(self) -> bool:
        """Compare with what is there now. Cost: 17 us for a local folder, 90 us for a snapshot."""
        try:
            if any(Stamp.take_link(stamp.path) != stamp for stamp in self.stamps):
                return True
            if not self.is_snapshot:
                return False
            return [file.name for file in self.files] != [
                p.name for p in adapter_files(self.folder)
            ]
        except OSError:
            return True

    def digest(self, hasher: FileHasher) -> bytes:
        """Read all files and return 32 bytes that identify their content.

        Raises:
            OSError: A file cannot be read, does not match the digest that is its name in the hub's
                cache, or has changed meanwhile.
        """
        digests = {}
        for file in self.files:
            digest = hasher.hash(file.stamp.path, for_git=file.blob is not None)
            assert digest is not None, "it is never stopped"
            if not (file.blob is None or digest.include(file.blob)):
                msg = f"{file.stamp.path} does not match the digest that is its name"
                raise OSError(msg)
            digests[file.name] = digest
        if self.have_changed():
            msg = "it was changed while it was read"
            raise OSError(msg)
        return digest_of_files(digests)


def is_path(name: str) -> bool:
    """Return whether vLLM reads the name of an adapter as a path, and not as one of the hub."""
    return name.startswith(("/", "~")) or Path(name).exists()


def find_files(name: str, hub_cache: Path | None) -> AdapterFiles | None:
    """Return what vLLM would load as `name` now; None if the hub's client has to fetch it first.

    Args:
        name: The name or path that vLLM was given.
        hub_cache: Where vLLM keeps adapters of the hub; None if it does not use the hub.

    Raises:
        OSError: There is nothing, or it cannot be read.
    """
    if is_path(name):
        return _look(Path.cwd() / os.path.expanduser(name), None)  # noqa: PTH111 as vLLM does
    if hub_cache is None:
        msg = f"there is no {name} on this machine"
        raise FileNotFoundError(msg)
    folder = find_checkpoint(name, hub_cache=hub_cache)
    reference = repository_of(name, hub_cache) / "refs" / "main"
    return None if folder is None else _look(folder, reference)


def find_only_snapshot(name: str, hub_cache: Path) -> AdapterFiles:
    """Return the files of a repository that vLLM has fetched itself and that has one snapshot.

    Raises:
        OSError: It cannot be read, or there are several states of it.
    """
    folders = list((repository_of(name, hub_cache) / "snapshots").iterdir())
    if len(folders) != 1:
        msg = f"there are {len(folders)} snapshots of it"
        raise OSError(msg)
    found = _look(folders[0], None)
    if not all(file.blob for file in found.files):
        msg = "its files are not those of the hub's client"
        raise OSError(msg)
    return found


def _look(folder: Path, reference: Path | None) -> AdapterFiles:
    paths = Paths()
    files = []
    for path in adapter_files(folder):
        real, links = paths.follow(str(path))
        files.append(FoundFile(path.name, Stamp.take(real), links))
    if not files:
        msg = f"there is no adapter in {folder}"
        raise FileNotFoundError(msg)
    stamps = {stamp for file in files for stamp in (file.stamp, *file.links)}
    real, _ = paths.follow(str(folder))
    is_snapshot = Path(real).parent.name == "snapshots"
    if not is_snapshot:
        stamps.add(Stamp.take(real))
    if reference is not None:
        real, links = paths.follow(str(reference))
        stamps |= {Stamp.take(real), *links}
    return AdapterFiles(folder, tuple(files), frozenset(stamps), is_snapshot)
