"""`flexkv doctor`: versions, machine, options and directories, and which of them will not work."""

import sys
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from flexkv_core.cli.disks import Disk, disk_notes, disk_problems, find_disk
from flexkv_core.cli.machine import Machine, find_machine, machine_problems
from flexkv_core.cli.text import bytes_text, counted, printable, table, write_json
from flexkv_core.cli.versions import Installed, find_installed, version_notes, version_problems
from flexkv_core.config import CacheConfig, parse_config
from flexkv_core.env import Layer, read_layers
from flexkv_core.errors import ConfigError

__all__ = ["SCHEMA_VERSION", "examine"]

SCHEMA_VERSION = 1
"""Of the JSON: keys may be added; changing the meaning of a key needs a new version."""

_WELL, _PROBLEMS = 0, 1


class _Option(msgspec.Struct, kw_only=True):
    """One option, and the source of its value."""

    option: str
    value: object
    source: str


class _Report(msgspec.Struct, kw_only=True):
    """The whole report: the JSON, except for its first keys."""

    versions: list[Installed]
    machine: Machine
    options: list[_Option]
    directories: list[Disk]
    notes: list[str]
    problems: list[str]


def examine(*, as_json: bool) -> int:
    """Write what was found to standard output; return the exit status.

    Options on the engine's own command line are not visible here: set them as environment variables
    to have them examined.
    """
    report = _examine()
    if as_json:
        first = {"schema_version": SCHEMA_VERSION, "command": "doctor"}
        write_json(first | msgspec.to_builtins(report))
    else:
        sys.stdout.writelines(_lines(report))
    return _PROBLEMS if report.problems else _WELL


def _examine() -> _Report:
    versions, machine = find_installed(), find_machine()
    report = _Report(
        versions=versions,
        machine=machine,
        options=[],
        directories=[],
        notes=list(version_notes(versions)),
        problems=list(version_problems(versions)),
    )
    try:
        layers = read_layers()
        config = parse_config(*(layer.options for layer in layers))
    except ConfigError as error:
        report.problems.append(str(error))
        return report
    report.options = list(_options(config, layers))
    report.directories = [find_disk(directory) for directory in config.ssd_directories]
    report.notes += disk_notes(report.directories)
    report.problems += machine_problems(machine, config)
    report.problems += disk_problems(report.directories, config)
    return report


def _options(config: CacheConfig, layers: Sequence[Layer]) -> Iterator[_Option]:
    sources = {option: layer.source for layer in layers for option in layer.options}
    for option, value in msgspec.structs.asdict(config).items():
        yield _Option(option=option, value=value, source=sources.get(option, "default"))


def _lines(report: _Report) -> Iterator[str]:
    """Yield the lines of the report for people."""
    yield "versions\n"
    yield table([_version_row(one) for one in report.versions])
    yield "machine\n"
    yield table(list(_machine_rows(report.machine).items()))
    if report.options:
        yield "options (the engine's own command line is not visible here)\n"
        yield table([_option_row(one) for one in report.options])
    if report.directories:
        yield "directories of the SSD tier\n"
        yield from (
            f"  {printable(disk.path)}: {_disk_text(disk)}\n" for disk in report.directories
        )
    yield from (f"note: {printable(note)}\n" for note in report.notes)
    yield from (f"PROBLEM: {printable(problem)}\n" for problem in report.problems)
    yield "" if report.problems else "no problems found\n"


def _version_row(one: Installed) -> tuple[str, str, str]:
    supported = f"supported: {one.supported}" if one.supported else ""
    return one.name, printable(one.version or "-"), supported


def _machine_rows(machine: Machine) -> Mapping[str, str]:
    lock = machine.memlock_bytes
    return {
        "cores": f"{machine.usable_cores} of {machine.cores}",
        "memory": f"{bytes_text(machine.memory_free_bytes)} free, {machine.memory_limit}",
        "host tier by default": bytes_text(machine.default_cache_bytes),
        "huge pages": f"{bytes_text(machine.huge_pages_free_bytes)} free",
        "lockable memory": "any" if lock is None else bytes_text(lock),
        "GPUs": printable(", ".join(machine.gpus)) or "none",
    }


def _option_row(one: _Option) -> tuple[str, str, str]:
    value = "-" if one.value is None else str(one.value)
    return one.option, printable(value) or "''", printable(one.source)


def _disk_text(disk: Disk) -> str:
    direct = {True: "with direct I/O", False: "without direct I/O", None: "that is not writable"}
    held = f"{counted(disk.slabs, 'slab')} of {counted(disk.namespaces, 'namespace')}"
    parts = [
        "there" if disk.exists else "not there yet",
        f"{disk.file_system} {direct[disk.direct_io]}",
        f"{bytes_text(disk.bytes_free)} free",
        f"{held}, {bytes_text(disk.bytes_on_disk)}",
    ]
    return ", ".join(parts)
