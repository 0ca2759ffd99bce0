import os
import subprocess
import sys
from pathlib import Path

import pytest

from flexkv_core.cli import main as main_module

COMMAND = (sys.executable, "-m", "flexkv_core.cli")
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """An environment without our variables."""
    for name in [name for name in os.environ if name.startswith("FLEXKV_")]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("command", ["ls", "fsck"])
def test_no_directory_is_one_line(flexkv, command):
    report = flexkv(command)

    assert (report.status, report.out) == (2, "")
    assert report.err == (
        "flexkv: no directory: name one, or set FLEXKV_SSD_CACHE_DIR or FLEXKV_CONFIG_PATH\n"
    )


@pytest.mark.parametrize("command", ["ls", "fsck"])
def test_a_missing_directory_is_one_line(flexkv, tmp_path, command):
    report = flexkv(command, tmp_path / "gone", "--json")

    assert (report.status, report.out) == (2, "")
    assert report.err == (
        f"flexkv: {tmp_path / 'gone'} cannot be read: no such file or directory\n"
    )


def test_a_file_is_no_directory(flexkv, tmp_path):
    (tmp_path / "file").touch()

    report = flexkv("fsck", tmp_path / "file")

    assert report.status == 2
    assert report.err == f"flexkv: {tmp_path / 'file'} cannot be read: not a directory\n"


def test_a_directory_of_another_user_is_one_line(flexkv, make_slab, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("flexkv_core.cli.folders.os.open", refuse)
    report = flexkv("fsck", tmp_path)

    assert report.status == 2
    assert report.err == f"flexkv: {tmp_path} cannot be read: permission denied\n"


def test_a_directory_that_is_missing_among_others_stops_the_command(flexkv, make_slab, tmp_path):
    make_slab()

    report = flexkv("ls", tmp_path, tmp_path / "gone")

    assert (report.status, report.out) == (2, "")


def test_directories_come_from_the_environment(environment, flexkv, make_slab, tmp_path):
    make_slab(tmp_path / "a")
    make_slab(tmp_path / "b")
    environment.setenv("FLEXKV_SSD_CACHE_DIR", f"{tmp_path / 'a'};{tmp_path / 'b'}")

    listing = flexkv("ls", "--json")

    paths = [row["path"] for row in listing.json["directories"]]
    assert paths == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_directories_come_from_the_file_of_options(environment, flexkv, make_slab, tmp_path):
    make_slab(tmp_path / "a")
    (tmp_path / "options.yaml").write_text(f"ssd_cache_gb: 5\nssd_cache_dir: [{tmp_path / 'a'}]\n")
    environment.setenv("FLEXKV_CONFIG_PATH", str(tmp_path / "options.yaml"))

    assert flexkv("fsck").status == 0


@pytest.mark.parametrize("off", ["FLEXKV_SSD_CACHE_GB", "FLEXKV_ENABLE_SSD"])
def test_directories_of_a_tier_that_was_switched_off_are_read(
    environment, flexkv, make_slab, tmp_path, off
):
    make_slab(tmp_path / "a")
    environment.setenv("FLEXKV_SSD_CACHE_DIR", str(tmp_path / "a"))
    environment.setenv(off, "0")

    assert [row["path"] for row in flexkv("ls", "--json").json["directories"]] == [
        str(tmp_path / "a")
    ]


def test_a_wrong_option_is_one_line(environment, flexkv):
    environment.setenv("FLEXKV_SSD_CACHE_DIR", "relative")

    report = flexkv("ls")

    assert report.status == 2
    assert report.err.startswith("flexkv: ssd_cache_dir ")
    assert report.err.count("\n") == 1


def test_named_directories_need_no_configuration(environment, flexkv, make_slab, tmp_path):
    make_slab()
    environment.setenv("FLEXKV_SSD_CACHE_DIR", "relative")

    assert flexkv("fsck", tmp_path).status == 0


def test_a_directory_with_two_names_is_read_once(flexkv, make_slab, tmp_path):
    make_slab(tmp_path / "a").write_chain(1)
    (tmp_path / "b").symlink_to(tmp_path / "a")

    listing = flexkv("ls", tmp_path / "a", tmp_path / "b", tmp_path / "a", "--json").json

    assert listing["namespaces"][0]["columns"][0]["slabs"] == 1


@pytest.mark.parametrize("arguments", [[], ["frob"], ["ls", "--repair"]])
def test_wrong_usage_is_2(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main_module.main(arguments)

    assert stopped.value.code == 2
    assert "usage: flexkv" in capsys.readouterr().err


def test_exit_statuses_are_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main_module.main(["fsck", "--help"])

    text = capsys.readouterr().out
    assert all(f"\n  {status}  " in text for status in (0, 1, 2, 3))


def test_an_interrupt_is_one_line(flexkv, monkeypatch, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "list_directories", interrupt)
    report = flexkv("ls", tmp_path)

    assert (report.status, report.err) == (130, "flexkv: interrupted\n")


def test_a_reader_that_goes_away_is_no_traceback(make_slab, tmp_path):
    make_slab()
    reader, writer = os.pipe()
    os.close(reader)
    command = [*COMMAND, "ls", tmp_path]
    done = subprocess.run(command, cwd=ROOT, check=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)

    assert (done.returncode, done.stderr) == (141, b"")


def test_the_command_loads_no_tensors(make_slab, tmp_path):
    make_slab().write_chain(1)
    program = (
        "import sys; from flexkv_core.cli.main import main; status = main(sys.argv[1:]); "
        "assert status == 0; "
        "assert not {'numpy', 'torch', 'triton', 'vllm', 'flexkv_connectors'} & set(sys.modules)"
    )
    for command in ("ls", "fsck"):
        subprocess.run([sys.executable, "-c", program, command, tmp_path], cwd=ROOT, check=True)


def test_the_command_is_installed_under_its_name():
    assert '[project.scripts]\nflexkv = "flexkv_core.cli.main:main"\n' in (
        (ROOT / "pyproject.toml").read_text()
    )
