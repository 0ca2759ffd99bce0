"""What the tests of a lane share lies beside them, in no package."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from cpu_lane_rig import close_pools


@pytest.fixture(autouse=True)
def pools_end_with_their_test():
    yield
    close_pools()
