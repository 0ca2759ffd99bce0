"""Which generation of blocks counts under a name that the user gave to weights.

    <directory>/.<namespace>.<column>.generation     magic, length, checksum, JSON

Such a name stays when the weights change in place. So what is stored says by a token of which
generation it is, and a record in every directory says which token is the newest: whatever file or
folder of before comes back, nothing in it is of that generation. The highest count wins. Where
there is no record, or one that cannot be read, nobody knows what has changed meanwhile, and a new
generation begins.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from flexkv_core.layout import Column
from flexkv_core.namespace import Namespace
from flexkv_core.tiers.ssd.directory import Directory
from flexkv_core.tiers.ssd.files import SharedFile, remove_durably, write_durably
from flexkv_core.tiers.ssd.format import GENERATION_SUFFIX, pack_text, unpack_text

__all__ = ["Generation", "Generations"]

logger = logging.getLogger(__name__)

_MAGIC = b"FLEXKVG1"
_MAX_BYTES = 4096


class Generation(msgspec.Struct, frozen=True, order=True, forbid_unknown_fields=True):
    """What a record says."""

    count: int
    """Generations up to this one, as far as anybody knew."""

    token: str
    """`Superblock.generation`."""

    def followed_by(self, token: str) -> "Generation":
        """Return the next one."""
        return Generation(self.count + 1, token)

    def pack(self) -> bytes:
        """Return the content of a record."""
        return pack_text(_MAGIC, self)

    @classmethod
    def unpack(cls, content: bytes) -> "Generation | None":
        """Read what `pack` wrote; None for anything else."""
        found = unpack_text(_MAGIC, content, cls)
        return found[0] if found else None


_NONE = Generation(0, "")
_Yield = Callable[[Generation, Generation], Generation]
"""From our own generation, and one that another process has recorded since, to ours from now on."""


class Generations:
    """The generation of each of a rank's columns.

    Where the user gave no name, nothing is recorded, and all tokens are empty.

    Thread: one at a time.
    """

    def __init__(
        self, directories: Sequence[Directory], namespace: Namespace, columns: Sequence[Column]
    ) -> None:
        """Read and write nothing yet."""
        self._directories = directories
        self._has_name = bool(namespace.weight_version)
        folders = [directory.path for directory in directories]
        self._records = [_Record(folders, namespace, column) for column in columns]

    def resume(self, token: str) -> list[str] | None:
        """Go on with the newest generations that are known.

        Args:
            token: Of a new one, where none is known; nothing else was ever called so.

        Returns:
            The token of each column; None if no directory keeps a record: what is stored could
            not be told from what comes after.
        """
        for record in self._records:
            record.resume(token)
        return self._settle(_adopt)

    def begin(self, token: str) -> list[str] | None:
        """Let the generation `token` be newer than all others; otherwise like `resume`."""
        for record in self._records:
            record.begin(token)
        return self._settle(_supersede)

    def _settle(self, yield_to: _Yield) -> list[str] | None:
        if not self._has_name:
            return [""] * len(self._records)
        failed: dict[Directory, OSError] = {}
        for directory in self._directories:
            try:
                with directory.locked():
                    for record in self._records:
                        record.write(directory.path, yield_to)
            except OSError as error:
                failed[directory] = error
        for directory, error in failed.items():
            self._retract(directory, error)
        if len(failed) == len(self._directories):
            logger.warning("ssd.generation_not_recorded: blocks are kept until the engine ends")
            return None
        return [record.generation.token for record in self._records]

    def _retract(self, directory: Directory, reason: OSError) -> None:
        """Delete the records that could not be replaced: none is as good as the newest."""
        try:
            for record in self._records:
                record.retract(directory.path)
        except OSError:
            logger.warning(
                "ssd.generation_not_recorded directory=%s: %s; what it holds from before a reset is"
                " found again if no other directory of ssd_cache_dir has a newer record at the next"
                " start: delete its .*%s files before",
                directory.path,
                reason.strerror,
                GENERATION_SUFFIX,
            )


class _Record:
    """What the directories say of one column."""

    def __init__(self, folders: Sequence[Path], namespace: Namespace, column: Column) -> None:
        self.generation = _NONE
        self._folders = folders
        self._name = f".{namespace.short}.{column.name}{GENERATION_SUFFIX}"

    def resume(self, token: str) -> None:
        """Choose the newest generation, or a new one if there may be one that is not known."""
        found = self._found()
        newest = _newest(found)
        is_known = newest != _NONE and None not in found
        self.generation = newest if is_known else newest.followed_by(token)

    def begin(self, token: str) -> None:
        """Choose a new generation."""
        self.generation = _newest(self._found()).followed_by(token)

    def write(self, folder: Path, yield_to: _Yield) -> None:
        """Let `folder` say what was chosen; under its lock.

        Raises:
            OSError: It may say something else.
        """
        newest, own = _newest(self._found()), self.generation
        if newest.token != own.token and newest.count >= own.count:
            self.generation = yield_to(own, newest)
        if _read(folder / self._name) != self.generation:
            write_durably(folder / self._name, self.generation.pack())

    def retract(self, folder: Path) -> None:
        """Let `folder` say nothing instead of something older.

        Raises:
            OSError: It may say so still.
        """
        found = _read(folder / self._name)
        if found is None or _NONE < found < self.generation:
            remove_durably(folder / self._name)

    def _found(self) -> list[Generation | None]:
        return [_read(folder / self._name) for folder in self._folders]


def _adopt(_: Generation, newest: Generation) -> Generation:
    return newest


def _supersede(own: Generation, newest: Generation) -> Generation:
    return newest.followed_by(own.token)


def _newest(found: Sequence[Generation | None]) -> Generation:
    return max(filter(None, found), default=_NONE)


def _read(path: Path) -> Generation | None:
    """Return what a record says, `_NONE` if there is no record, None if nobody can tell."""
    content = bytearray(_MAX_BYTES)
    try:
        num_bytes = SharedFile.open(path).read([memoryview(content)], 0)
    except (FileNotFoundError, NotADirectoryError):
        return _NONE
    except OSError:
        return None
    return Generation.unpack(bytes(content[:num_bytes]))
