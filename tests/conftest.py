import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How busy a machine is decides no test.
too_slow = [HealthCheck.too_slow]
settings.register_profile("any_machine", deadline=None, suppress_health_check=too_slow)
settings.load_profile("any_machine")


@pytest.fixture
def open_files() -> Callable[[], set[tuple[str, str]]]:
    """Who calls it is given number and name of each file that this process has open.

    To be compared by what is new: what an earlier test left may be closed at any time.
    """
    gc.collect()
    return _open_files


def _open_files() -> set[tuple[str, str]]:
    files = set()
    for file in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one by which this folder is read
            files.add((file.name, str(file.readlink())))
    return files
