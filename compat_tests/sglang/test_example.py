"""What a newcomer runs first works on the real engine."""

import subprocess
import sys
from pathlib import Path

from sglang_process import safe_environment

EXAMPLE = Path(__file__).parents[2] / "examples/sglang_offline.py"


def test_offline_example_hits_ssd_and_answers_the_same(tmp_path):
    command = [sys.executable, EXAMPLE]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=safe_environment(),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith(("f", "  answer"))]
    (cold, cold_answer), (warm, warm_answer) = lines[:2], lines[-2:]
    assert cold.startswith("first time: 0 of")
    assert warm.startswith("from SSD: 1152 of")
    assert cold_answer == warm_answer
