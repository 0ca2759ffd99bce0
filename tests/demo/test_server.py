"""What is told of a server that ended."""

import subprocess
import sys

import pytest
from demo.server import _stop, _why_it_ended


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            "WARNING limits like `OSError: [Errno 24] Too many open files` can follow\n"
            '(Worker pid=1) ERROR 11-22 02:03:50 [x.py:9]     raise ValueError("x")\n'
            "(Worker pid=1) ERROR 11-22 02:03:50 [x.py:9] a.b.ConfigError: block_tokens is 64\n"
            "RuntimeError: See root cause above.\n",
            "a.b.ConfigError: block_tokens is 64",
        ),
        ("all is well\n", "status 3, no error in its log"),
    ],
)
def test_the_first_error_is_the_reason(log, reason, tmp_path):
    path = tmp_path / "server.log"
    path.write_text(log)
    server = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    server.wait()
    assert f"the server ended: {reason} (" in _why_it_ended(server, path)
