"""What a newcomer runs first works on the real engine: the example and the demo."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_offline_example_hits_host_memory(tmp_path):
    command = [sys.executable, ROOT / "examples/vllm_offline.py"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    [cold, cold_answer, loaded, loaded_answer] = [
        line for line in done.stdout.splitlines() if line.startswith(("first", "from", "  answer"))
    ]
    assert cold.startswith("first time: 0 of")
    assert not loaded.startswith("from host memory: 0 of")
    assert cold_answer == loaded_answer


def test_demo_shows_what_it_claims(tmp_path):
    # The demo itself is not installed: it is found in the working directory.
    python = ["env", "--unset=PYTHONSAFEPATH", sys.executable]
    command = [*python, "-m", "demo", "--model", "demo", "--rounds", "1", "--work", tmp_path]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "report-demo.html").read_text().count("FlexKV, host memory") >= 2
