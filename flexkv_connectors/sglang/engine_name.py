"""A name for an engine, the same on all of its ranks and never another engine's."""

import os
import secrets
from pathlib import Path

__all__ = ["engine_name"]

_START_FIELD = 19
"""Of `/proc/<pid>/stat` behind the name of the program: when the process began, in clock ticks."""


def engine_name(engine_index: int, dp_rank: int) -> str:
    """Return the name that every rank on this node comes to by itself.

    SGLang starts all of them from one process. Process numbers are used again, and are the same in
    many containers; a number together with the moment when the process began is not.

    Args:
        engine_index: Which of the engines that one command has started.
        dp_rank: Which of the groups of an engine that attend apart.
    """
    parent = os.getppid()
    return f"sglang-{os.uname().nodename}-{parent}-{_start_of(parent)}-{engine_index}-{dp_rank}"


def _start_of(pid: int) -> str:
    """Return when a process began, in clock ticks since the machine did.

    Where that cannot be read, return a random name: the ranks will not find each other then.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return secrets.token_hex(8)
    return status.rpartition(")")[2].split()[_START_FIELD]
