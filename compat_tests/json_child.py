"""A Python process that is driven by commands: one JSON object a line, each answered by another.

The child is given two numbers of pipes: commands and answers. See `engine_child.py` of an engine.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class EngineFailure(AssertionError):
    """The engine process raised, died, or did not answer in time."""


class JsonChild:
    """Starts a child and calls it.

    Args:
        command: Program and arguments; the numbers of the pipes are added.
        folder: Its working directory, and where its output goes.
        env: Its whole environment.
    """

    def __init__(self, command: Sequence[str | Path], folder: Path, env: dict[str, str]) -> None:
        self.log = folder / "engine.log"
        command_read, command_write = os.pipe()
        answer_read, answer_write = os.pipe()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, str(command_read), str(answer_write)],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(command_read, answer_write),
                start_new_session=True,
            )
        os.close(command_read)
        os.close(answer_write)
        self._commands = os.fdopen(command_write, "w", buffering=1)
        self._answers = os.fdopen(answer_read)

    @property
    def pid(self) -> int:
        """The engine's process; its workers are among the descendants."""
        return self._process.pid

    def kill(self) -> None:
        """Kill the process and everything it started, in the middle of whatever it does."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End the process and everything it started."""
        with contextlib.suppress(OSError):
            self._commands.close()
        self._end(patience_s=20.0)

    def log_text(self) -> str:
        """Return what the process has printed."""
        return self.log.read_text(errors="replace")

    def _call(self, call: str, timeout_s: float = 120.0, **arguments: Any) -> Any:
        self._send(call, **arguments)
        readable, _, _ = select.select([self._answers], [], [], timeout_s)
        line = self._answers.readline() if readable else ""
        if line:
            return json.loads(line)
        reason = "failed" if readable else f"gave no answer within {timeout_s} s"
        self._end(patience_s=20.0 if readable else 0.0)
        tail = self.log_text()[-4000:]
        raise EngineFailure(f"engine {reason} in {call}; end of {self.log}:\n{tail}")

    def _send(self, call: str, **arguments: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._commands.write(json.dumps({"call": call, "with": arguments}) + "\n")

    def _end(self, patience_s: float) -> None:
        """Let the process end by itself, then kill what is left of all that it started."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=patience_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._answers.close()
        with contextlib.suppress(OSError):
            self._commands.close()
