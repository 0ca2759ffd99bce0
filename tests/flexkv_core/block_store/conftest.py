"""What the tests of the block store share lies beside them, in no package."""

import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def start(tmp_path):
    """Start processes of an engine on one directory, each after the end of the one before."""
    from store_rig import Rig

    with ExitStack() as running:

        def start(make=Rig, **options):
            running.close()
            rig = make(tmp_path, **options)
            running.callback(rig.close)
            return rig

        yield start
