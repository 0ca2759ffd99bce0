"""One name for the ranks of an engine on one node, which no other engine ever has."""

import os
import secrets
from pathlib import Path

__all__ = ["engine_name"]

_START_FIELD = 19
"""Of `/proc/<pid>/stat` behind the name of the program: when the process began, in clock ticks."""


def engine_name(replica: int, dp_rank: int) -> str:
    """Return the name that every rank on this node comes to by itself.

    SGLang starts all of them from one process. Its number may be another engine's tomorrow, and is
    in a container: its number and the moment of its start are not.

    Args:
        replica: Which of the engines that one command has started.
        dp_rank: Which of the groups of an engine that attend apart.
    """
    parent = os.getppid()
    return f"sglang-{os.uname().nodename}-{parent}-{_start_of(parent)}-{replica}-{dp_rank}"


def _start_of(pid: int) -> str:
    """Return when a process began, in clock ticks since the machine did.

    Where that cannot be read, something that nobody else comes to: ranks do not find each other.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return secrets.token_hex(8)
    return status.rpartition(")")[2].split()[_START_FIELD]
