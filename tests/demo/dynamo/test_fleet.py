"""A fleet that fails says which process it was, and hears of nothing that the user has set."""

import http.client
import subprocess
import sys
from pathlib import Path

import pytest

from demo.dynamo import fleet
from demo.process import Child, DemoError


@pytest.fixture
def child(tmp_path):
    """Return a function that makes a child of a program; it is ended at the end."""
    started = []

    def start(program):
        process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
        started.append(process)
        log = tmp_path / "log"
        log.write_text("ValueError: no room\n")
        return Child("worker 2", process, log)

    yield start
    for process in started:
        process.communicate()


@pytest.mark.parametrize(
    "error", [DemoError("503"), ConnectionResetError(), http.client.RemoteDisconnected()]
)
def test_a_failure_is_blamed_on_the_process_that_ended(child, error):
    dead = child("raise SystemExit(1)")
    dead.process.wait()
    with (
        pytest.raises(DemoError, match="worker 2 ended: ValueError: no room"),
        fleet._told_of_the_dead([child("input()"), dead]),
    ):
        raise error


def test_a_failure_is_told_as_it_is_while_all_run(child):
    running = [child("input()")]
    with pytest.raises(DemoError, match=r"^503$"), fleet._told_of_the_dead(running):
        raise DemoError("503")
    with pytest.raises(DemoError, match="does not answer"), fleet._told_of_the_dead(running):
        raise ConnectionResetError


def test_the_users_settings_are_not_heard(monkeypatch):
    monkeypatch.setenv("DYN_NAMESPACE", "theirs")
    monkeypatch.setenv("FLEXKV_CPU_CACHE_GB", "100")
    environment = fleet._environment(Path("work"), Path("outside"))
    assert not {"DYN_NAMESPACE", "FLEXKV_CPU_CACHE_GB"} & set(environment)
    assert environment["DYN_REQUEST_PLANE"] == "tcp"


def test_metrics_ports_fit_what_dynamo_reads():
    assert max(fleet._metrics_ports()) < 1 << 15
