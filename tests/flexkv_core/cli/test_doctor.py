import subprocess
import sys
from pathlib import Path

import pytest

from flexkv_core.cli import doctor
from flexkv_core.cli.versions import Installed

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """One engine that is supported, and none of our variables."""
    for name in ("CONFIG_PATH", "CPU_CACHE_GB", "SSD_CACHE_GB", "SSD_CACHE_DIR", "NAMESPACE"):
        monkeypatch.delenv(f"FLEXKV_{name}", raising=False)
    monkeypatch.setenv("FLEXKV_CPU_CACHE_GB", "0.001")
    engine = Installed(name="vllm", version="0.32.0", supported=">=0.28,<0.34")
    monkeypatch.setattr(doctor, "find_installed", lambda: [engine])
    return monkeypatch


def test_a_good_setup_is_status_0(flexkv):
    report = flexkv("doctor")
    assert report.status == 0
    assert report.out.endswith("no problems found\n")
    assert "vllm  0.32.0  supported: >=0.28,<0.34" in report.out


def test_every_option_says_where_it_is_from(flexkv, environment, tmp_path):
    (tmp_path / "options.yaml").write_text("namespace: a\nmin_load_tokens: 5\n")
    environment.setenv("FLEXKV_CONFIG_PATH", str(tmp_path / "options.yaml"))
    environment.setenv("FLEXKV_NAMESPACE", "b")
    rows = flexkv("doctor", "--json").json["options"]
    said = {row["option"]: (row["value"], row["source"]) for row in rows}
    assert said["namespace"] == ("b", "the environment")
    assert said["min_load_tokens"] == (5, f"the file {tmp_path / 'options.yaml'}")
    assert said["load_async"] == (True, "default")


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("FLEXKV_CPU_CACH_GB", "1", "did you mean FLEXKV_CPU_CACHE_GB"),
        ("FLEXKV_CONFIG_PATH", "/nowhere.yaml", "cannot be read"),
        ("FLEXKV_CPU_CACHE_GB", "60000", "set cpu_cache_gb to at most"),
        ("FLEXKV_SSD_CACHE_GB", "5", "ssd_cache_gb is set without ssd_cache_dir"),
    ],
)
def test_what_will_not_work_is_a_problem_and_status_1(
    flexkv, environment, variable, value, sentence
):
    environment.setenv(variable, value)
    report = flexkv("doctor")
    assert report.status == 1
    [line] = [line for line in report.out.splitlines() if line.startswith("PROBLEM: ")]
    assert sentence in line


def test_an_engine_of_another_version_is_a_problem(flexkv, environment):
    engine = Installed(name="vllm", version="0.40.1", supported=">=0.28,<0.34")
    environment.setattr(doctor, "find_installed", lambda: [engine])
    report = flexkv("doctor", "--json")
    assert report.status == 1
    [problem] = report.json["problems"]
    assert problem.startswith("vllm 0.40.1 is installed, but this release supports >=0.28,<0.34")


def test_the_directories_of_the_ssd_tier_are_looked_at(flexkv, environment, make_slab, tmp_path):
    make_slab().write_chain(2)
    environment.setenv("FLEXKV_SSD_CACHE_GB", "0.001")
    environment.setenv("FLEXKV_SSD_CACHE_DIR", str(tmp_path))
    report = flexkv("doctor", "--json")
    [disk] = report.json["directories"]
    assert (disk["exists"], disk["namespaces"], disk["slabs"]) == (True, 1, 1)
    assert report.status == 0


def test_text_of_others_is_escaped(flexkv, environment):
    environment.setenv("FLEXKV_NAMESPACE", "a\x1b[31m")
    assert "\x1b" not in flexkv("doctor").out


def test_it_loads_no_tensors_and_no_engine():
    program = (
        "import sys; from flexkv_core.cli.main import main; main(['doctor']); "
        "loaded = {'numpy', 'torch', 'triton', 'vllm', 'sglang', 'flexkv_connectors'}; "
        "assert not loaded & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)
