"""What is told of a child that ended, and what is left of one that was stopped: nothing."""

import re
import signal
import subprocess
import sys

import pytest

from demo import process
from demo.process import Child, DemoError, _is_running, require_running, stop

STARTUP_ERROR = """\
WARNING limits like `OSError: [Errno 24] Too many open files` can follow
(Worker pid=1) ERROR 11-22 02:03:50 [x.py:9]     raise ValueError("x")
(Worker pid=1) ERROR 11-22 02:03:50 [x.py:9] a.b.ConfigError: block_tokens is 64
RuntimeError: See root cause above.
"""


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (STARTUP_ERROR, "a.b.ConfigError: block_tokens is 64"),
        ("all is well\n", "status 3, no error in its log"),
    ],
)
def test_the_first_error_is_the_reason(log, reason, tmp_path):
    path = tmp_path / "server.log"
    path.write_text(log)
    server = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    server.wait()
    with pytest.raises(DemoError, match=re.escape(f"the server ended: {reason} (")):
        require_running([Child("the server", server, path)])


@pytest.fixture
def kept_signals():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("kept_signals")
@pytest.mark.parametrize("program", ["sleep 600 & wait", "trap '' TERM; sleep 600 & sleep 600"])
def test_a_stopped_server_leaves_no_process(program, monkeypatch, tmp_path):
    monkeypatch.setattr(process, "STOP_TIMEOUT_S", 1)
    server = subprocess.Popen(
        ["sh", "-c", f"{program} & echo; wait"], stdout=subprocess.PIPE, start_new_session=True
    )
    server.stdout.readline()
    assert _is_running(server.pid)
    stop([Child("the server", server, tmp_path)])
    assert not _is_running(server.pid)
    server.communicate()
