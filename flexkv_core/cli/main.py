"""The command line: arguments, directories, messages and exit statuses."""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from flexkv_core.cli.doctor import examine
from flexkv_core.cli.folders import open_folder
from flexkv_core.cli.fsck import check_directories
from flexkv_core.cli.ls import list_directories
from flexkv_core.cli.text import printable
from flexkv_core.config import parse_config
from flexkv_core.env import read_environment
from flexkv_core.errors import ConfigError

__all__ = ["main"]

_USAGE_ERROR = 2
_INTERRUPTED = 130
_READER_GONE = 141

_DIRECTORIES = (
    "directories of the SSD tier; default: ssd_cache_dir of the file in FLEXKV_CONFIG_PATH, or "
    "FLEXKV_SSD_CACHE_DIR"
)
_LS = """Lists the namespaces in the directories of the SSD tier. Reads headers only; use fsck to
verify payloads. Counts all cells on the disk, including those that an engine has forgotten but not
yet overwritten. A block counts if every column has it."""
_DOCTOR = """Shows versions, the machine, the directories of the SSD tier, and the options that
result from defaults, file and environment; reports what will not work, and what to do about it. Put
its output into a bug report. Exit status: 0 for no problems, 1 for some."""
_FSCK = """Verifies every header and payload in the directories of the SSD tier. Engines may keep
running. An engine never serves a bad cell: it verifies what it reads."""
_FSCK_EXIT = """exit status:
  0  clean
  1  problems found, and some or all of them left
  2  wrong usage, or a directory that cannot be read
  3  problems found, and all of them repaired

Duplicates and orphans are counted but are not problems: duplicates are blocks that were evicted and
came back, orphans cannot be reached until their parents come back. Slabs in use by an engine are
never changed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments`, those of the process by default; return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status = _run(options)
        sys.stdout.flush()
    except ConfigError as error:
        sys.stderr.write(f"flexkv: {printable(str(error))}\n")
        return _USAGE_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("flexkv: interrupted\n")
        return _INTERRUPTED
    except BrokenPipeError:
        # What is left in the buffer would raise again when the interpreter exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_GONE
    return status


def _run(options: argparse.Namespace) -> int:
    if options.command == "doctor":
        return examine(as_json=options.json)
    directories = list(_distinct(options.directories or _configured_directories()))
    if options.command == "ls":
        return list_directories(directories, as_json=options.json)
    return check_directories(
        directories,
        prefix=options.namespace,
        wants_repair=options.repair,
        as_json=options.json,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flexkv",
        description="Examines a machine and what FlexKV keeps on SSD. Needs no engine and no GPU.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    doctor = commands.add_parser("doctor", help="find what will not work", description=_DOCTOR)
    ls = commands.add_parser("ls", help="list what is kept", description=_LS)
    fsck = commands.add_parser(
        "fsck",
        help="verify what is kept",
        description=_FSCK,
        epilog=_FSCK_EXIT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for command in (ls, fsck):
        command.add_argument("directories", nargs="*", type=Path, metavar="DIR", help=_DIRECTORIES)
    for command in (doctor, ls, fsck):
        command.add_argument("--json", action="store_true", help="write one JSON object")
    fsck.add_argument(
        "--repair",
        action="store_true",
        help="empty the slots of bad cells, cut off incomplete ones, delete slabs that are "
        "unreadable or temporary, deny other users access; without it nothing is written",
    )
    fsck.add_argument(
        "--namespace", default="", metavar="PREFIX", help="only namespaces that begin with this"
    )
    return parser


def _configured_directories() -> Sequence[Path]:
    """Return the directories of the configuration that engines also use.

    Raises:
        ConfigError: None are set, or an option is wrong.
    """
    options = read_environment()
    if not options.get("ssd_cache_dir"):
        msg = "no directory: name one, or set FLEXKV_SSD_CACHE_DIR or FLEXKV_CONFIG_PATH"
        raise ConfigError(msg)
    # The size may be set where only the engine sees it, or be 0 by now; the files are still there.
    return parse_config(options, {"ssd_cache_gb": 1, "enable_ssd": None}).ssd_directories


def _distinct(directories: Iterable[Path]) -> Iterable[Path]:
    """Yield each directory once, under the first of its names.

    Raises:
        ConfigError: One cannot be read.
    """
    seen = set()
    for directory in directories:
        try:
            with open_folder(directory) as number:
                status = os.fstat(number)
        except OSError as error:
            msg = f"{directory} cannot be read: {(error.strerror or str(error)).lower()}"
            raise ConfigError(msg) from error
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            yield directory
