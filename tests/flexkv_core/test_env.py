import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flexkv_core import env
from flexkv_core.config import parse_config
from flexkv_core.env import (
    engine_start_s,
    hub_cache_folder,
    mark_engine_start,
    read_environment,
    replaces_stock_connector,
)
from flexkv_core.errors import ConfigError


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """An environment without our variables, to be filled by the test."""
    for name in [name for name in os.environ if name.startswith(("FLEXKV_", "HF_", "XDG_"))]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def config_file(environment, tmp_path):
    """Writes the file that FLEXKV_CONFIG_PATH points to."""

    def write(text, name="flexkv.yaml"):
        path = tmp_path / name
        path.write_text(text)
        environment.setenv("FLEXKV_CONFIG_PATH", str(path))
        return path

    return write


def error():
    with pytest.raises(ConfigError) as caught:
        read_environment()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_empty_environment_sets_nothing():
    assert read_environment() == {}


def test_variables_are_options_in_capitals(environment):
    environment.setenv("FLEXKV_CPU_CACHE_GB", "0.5")
    environment.setenv("FLEXKV_LOAD_ASYNC", "false")

    assert read_environment() == {"cpu_cache_gb": "0.5", "load_async": "false"}
    assert parse_config(read_environment()).cpu_cache_gb == 0.5


def test_an_empty_variable_sets_nothing(environment):
    environment.setenv("FLEXKV_CPU_CACHE_GB", "")
    environment.setenv("FLEXKV_CONFIG_PATH", "")

    assert read_environment() == {}


def test_an_unknown_variable_names_the_nearest(environment):
    environment.setenv("FLEXKV_CPU_CACH_GB", "16")

    assert error() == "unknown option FLEXKV_CPU_CACH_GB: did you mean FLEXKV_CPU_CACHE_GB?"


def test_a_variable_of_flexkv_is_an_option_whose_value_decides(environment):
    environment.setenv("FLEXKV_ENABLE_GDS", "1")

    assert read_environment() == {"enable_gds": "1"}
    with pytest.raises(ConfigError, match="enable_gds is '1', but this version moves nothing"):
        parse_config(read_environment())
    assert parse_config(read_environment(), {"enable_gds": False}) == parse_config()


def test_an_unknown_variable_is_shortened_and_escaped(environment):
    environment.setenv("FLEXKV_\x1b[2J" + "x" * 100_000, "1")

    message = error()

    assert message.startswith("unknown option FLEXKV_\\x1b[2JXXX")
    assert message.isprintable()
    assert len(message) < 1000


def test_variables_without_our_prefix_are_nobodys_business(environment):
    environment.setenv("MY_FLEXKV_CPU_CACH_GB", "16")
    environment.setenv("ENABLE_FLEXKV", "1")

    assert read_environment() == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLEXKV_ENABLE_LAYERWISE_TRANSFER", "1"),
        ("FLEXKV_LAYERWISE_EVENTFD_CONNECT_MAX_RETRIES", "360"),
        ("FLEXKV_SERVICE_HOST", "10.0.0.1"),
        ("FLEXKV_SERVICE_PORT", "8000"),
        ("FLEXKV_SERVICE_PORT_HTTP", "8000"),
        ("FLEXKV_PORT", "tcp://10.0.0.1:8000"),
        ("FLEXKV_ROUTER_PORT", "tcp://10.0.0.1:8000"),
        ("FLEXKV_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
        ("FLEXKV_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("FLEXKV_PORT_8000_TCP_PORT", "8000"),
    ],
)
def test_what_others_own_is_left_alone(environment, name, value):
    environment.setenv(name, value)

    assert read_environment() == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", True), ("true", True), ("0", False), ("false", False), ("", False)],
)
def test_the_name_of_flexkvs_connector_is_replaced_where_asked(environment, value, expected):
    environment.setenv("FLEXKV_REPLACE_STOCK_CONNECTOR", value)

    assert replaces_stock_connector() == expected
    assert read_environment() == {}


def test_nothing_is_replaced_unasked():
    assert not replaces_stock_connector()


def test_a_wish_that_cannot_be_read_is_refused(environment):
    environment.setenv("FLEXKV_REPLACE_STOCK_CONNECTOR", "perhaps")

    with pytest.raises(ConfigError, match="is 'perhaps': expected true or false"):
        replaces_stock_connector()


def test_a_port_that_kubernetes_did_not_set_is_an_error(environment):
    environment.setenv("FLEXKV_MASTER_PORT", "5556")

    assert error().startswith("unknown option FLEXKV_MASTER_PORT: ")


def test_a_value_that_looks_like_a_kubernetes_variable_is_a_value(environment):
    environment.setenv("FLEXKV_EVICTION_POLICY", "A_SERVICE_HOST")

    assert read_environment() == {"eviction_policy": "A_SERVICE_HOST"}


def test_a_variable_wins_over_the_file(config_file, environment):
    config_file("cpu_cache_gb: 1\nblock_tokens: 16\n")
    environment.setenv("FLEXKV_CPU_CACHE_GB", "2")

    assert read_environment() == {"cpu_cache_gb": "2", "block_tokens": 16}


def test_a_tilde_in_the_path_is_the_home_folder(environment, tmp_path):
    (tmp_path / "flexkv.yaml").write_text("block_tokens: 16")
    environment.setenv("HOME", str(tmp_path))
    environment.setenv("FLEXKV_CONFIG_PATH", "~/flexkv.yaml")

    assert read_environment() == {"block_tokens": 16}


def test_a_missing_file_is_named(environment, tmp_path):
    path = tmp_path / "missing.yaml"
    environment.setenv("FLEXKV_CONFIG_PATH", str(path))

    assert error() == (
        f"FLEXKV_CONFIG_PATH is {path}, which cannot be read: No such file or directory; "
        "expected a YAML or JSON file"
    )


def test_a_path_of_nobodys_home_is_named(environment):
    environment.setenv("FLEXKV_CONFIG_PATH", "~no-such-user/a")

    assert error().startswith("FLEXKV_CONFIG_PATH is ~no-such-user/a, which cannot be read: Could")


def test_a_file_that_is_no_configuration_is_one_line(config_file):
    path = config_file("a: b: c")

    assert error() == (
        f"FLEXKV_CONFIG_PATH is {path}, which is not a file of options: mapping values are not "
        "allowed here in line 1"
    )


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: b: c", b"a: &a [*a]", b"[" * 10_000])
def test_a_file_that_is_no_configuration_is_refused_without_the_parsers_traceback(
    config_file, content
):
    config_file("x").write_bytes(content)
    with pytest.raises(ConfigError) as refusal:
        read_environment()
    assert len(refusal.getrepr(chain=True).chain) == 1


@pytest.mark.parametrize("content", [b'a: "\xe2\x80\xae', b"a: *" + b"x" * 60_000, b"\x1b: 1"])
def test_nothing_of_a_file_commands_a_terminal_or_floods_it(config_file, content):
    config_file("x").write_bytes(content)

    message = error()

    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 600


def test_a_file_and_variables_as_flexkvs_pages_print_them_are_read(config_file, environment):
    config_file(
        "cpu_cache_gb: 32\nssd_cache_gb: 1024\n"
        "ssd_cache_dir: /data0/flexkv_ssd/;/data1/flexkv_ssd/\nenable_gds: false\n"
    )
    environment.setenv("FLEXKV_IOURING_ENTRIES", "512")
    environment.setenv("FLEXKV_CPU_CACHE_GB", "64")
    environment.setenv("ENABLE_FLEXKV", "1")

    config = parse_config(read_environment())

    assert (config.cpu_cache_gb, config.ssd_cache_gb) == (64, 1024)
    assert config.ssd_directories == (Path("/data0/flexkv_ssd"), Path("/data1/flexkv_ssd"))


def test_an_option_in_the_file_that_is_not_text_is_unknown(config_file):
    config_file("1: 2")

    with pytest.raises(ConfigError, match="unknown option 1: "):
        parse_config(read_environment())


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HOME": "/home/x"}, "/home/x/.cache/huggingface/hub"),
    ],
)
def test_the_hub_cache_is_where_the_hubs_client_keeps_it(environment, variables, folder):
    for name, value in variables.items():
        environment.setenv(name, value)

    assert hub_cache_folder() == Path(folder)


PROGRAM = """
import multiprocessing, subprocess, sys, time
from flexkv_core.env import engine_start_s, mark_engine_start, read_environment
child = "from flexkv_core.env import engine_start_s; print(engine_start_s(), flush=True)"
mark_engine_start()
print(engine_start_s(), flush=True)
assert read_environment() == {}
if sys.argv[1] == "part of it":
    process = multiprocessing.get_context("spawn").Process(target=exec, args=(child,))
    process.start()
    process.join()
elif sys.argv[1] == "another engine":
    subprocess.run([sys.executable, "-c", child], check=True)
"""


def run(what):
    """Start an engine, and from it another process; return when they think theirs has started."""
    command = [sys.executable, "-c", PROGRAM, what]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(line) for line in done.stdout.split()]


def test_an_engine_starts_with_its_own_process():
    before_s = time.time()
    [start_s] = run("alone")

    assert before_s - 0.1 < start_s < time.time()
    assert engine_start_s() < before_s


def test_a_process_of_the_engine_knows_when_the_engine_started():
    first_s, second_s = run("part of it")

    assert second_s == first_s


def test_an_engine_that_another_process_starts_is_its_own(environment):
    """What a Python program has written before it starts an engine is older than the engine."""
    first_s, second_s = run("another engine")

    assert second_s != first_s


def test_an_engine_starts_within_a_process_when_that_first_says_so(environment):
    """A script may make a model, then the engine; a second engine is as old as the first."""
    before_s = time.time()
    mark_engine_start()
    start_s = engine_start_s()
    mark_engine_start()

    assert before_s <= start_s <= time.time()
    assert engine_start_s() == start_s


@pytest.fixture
def part_of_an_engine(monkeypatch):
    monkeypatch.setattr(env, "parent_process", lambda: "the engine's first process")


def test_a_mark_of_an_earlier_process_stays(environment, part_of_an_engine):
    environment.setenv("FLEXKV_ENGINE_STARTED", "1:1000.5")
    mark_engine_start()

    assert engine_start_s() == 1000.5
    assert read_environment() == {}


@pytest.mark.parametrize(
    "text", ["", "1", "1:", "1:yesterday", "1:nan", "1:inf", f"1:{time.time() + 1000}"]
)
def test_a_mark_that_cannot_be_right_is_not_believed(environment, part_of_an_engine, text):
    own_s = engine_start_s()
    environment.setenv("FLEXKV_ENGINE_STARTED", text)

    assert abs(engine_start_s() - own_s) < 0.03


def test_without_a_process_table_the_engine_starts_now(monkeypatch):
    def refuse(*_):
        raise OSError

    monkeypatch.setattr(Path, "read_text", refuse)

    assert time.time() - engine_start_s() < 5
