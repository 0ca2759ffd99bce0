"""What an engine's processes really hold, seen from outside through /proc."""

from pathlib import Path
from typing import NamedTuple

import psutil


class SharedPool(NamedTuple):
    """One host pool, whoever has it open."""

    num_bytes: int
    owner_pids: set[int]
    mapper_pids: set[int]


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


def host_pools(pid: int) -> dict[int, SharedPool]:
    """Return the host pools of a process and its descendants, by inode."""
    pools: dict[int, SharedPool] = {}
    for member in family(pid):
        for link in Path(f"/proc/{member}/fd").iterdir():
            if _target_of(link).startswith("/memfd:flexkv-host"):
                file = link.stat()
                pool = pools.setdefault(file.st_ino, SharedPool(file.st_size, set(), set()))
                pool.owner_pids.add(member)
        for line in Path(f"/proc/{member}/maps").read_text().splitlines():
            if "/memfd:flexkv-host" in line:
                pools[int(line.split()[4])].mapper_pids.add(member)
    return pools


def listeners(pid: int) -> set[tuple[str, int]]:
    """Return the addresses and ports on which a process and its descendants listen."""
    sockets = (
        socket for member in family(pid) for socket in psutil.Process(member).net_connections()
    )
    return {tuple(socket.laddr) for socket in sockets if socket.status == psutil.CONN_LISTEN}


def _target_of(link: Path) -> str:
    """Return where `link` points; nowhere if its file was closed meanwhile."""
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""
