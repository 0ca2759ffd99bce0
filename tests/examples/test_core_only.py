"""The example that needs no engine does what it says."""

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples/core_only.py"


def test_blocks_come_back(tmp_path):
    command = [sys.executable, EXAMPLE]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.count("OK: 2 blocks") == 2
    assert done.stdout.splitlines()[-1] == "pages 0 and 7 hold what was computed, byte for byte"
