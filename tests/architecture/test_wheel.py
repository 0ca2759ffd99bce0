"""The wheel holds three import packages, everything they need, and nothing else."""

import configparser
import importlib
import subprocess
import sys
import zipfile

import pytest

PACKAGES = {
    "flexkv_connectors": "flexkv_connectors",
    "flexkv_core": "flexkv_core",
    "flexkv_kernels": "triton_kernels/flexkv_kernels",
}


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # The build back end itself: no network, no isolation.
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [path] = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def read_metadata(wheel, name):
    with zipfile.ZipFile(wheel) as archive:
        [path] = [path for path in archive.namelist() if path.endswith(f".dist-info/{name}")]
        return archive.read(path).decode()


def test_three_packages_and_no_more(names):
    top_level = {name.partition("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_of_a_package_is_there(root, names, package):
    folder = root / PACKAGES[package]
    sources = {f"{package}/{path.relative_to(folder)}" for path in folder.rglob("*.py")}
    packed = {name for name in names if name.startswith(f"{package}/") and name.endswith(".py")}
    assert packed == sources
    assert f"{package}/__init__.py" in packed


@pytest.mark.parametrize("package", PACKAGES)
def test_types_are_published(names, package):
    assert f"{package}/py.typed" in names


def test_wheel_is_pure_python(wheel, names):
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "Root-Is-Purelib: true" in read_metadata(wheel, "WHEEL")
    assert [name for name in names if name.endswith((".so", ".pyd", ".c", ".cu"))] == []


def test_vllm_finds_the_connector(wheel):
    entry_points = configparser.ConfigParser()
    entry_points.read_string(read_metadata(wheel, "entry_points.txt"))
    assert dict(entry_points["vllm.general_plugins"]) == {
        "flexkv": "flexkv_connectors.vllm:register"
    }
    assert callable(importlib.import_module("flexkv_connectors.vllm").register)


def test_licence_is_inside(wheel):
    assert "Apache License" in read_metadata(wheel, "licenses/LICENSE")
    assert "License-Expression: Apache-2.0" in read_metadata(wheel, "METADATA")


def test_name_of_tritons_own_package_stays_free(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "import importlib.util, sys\n"
        "sys.path.append(sys.argv[1])\n"
        "assert importlib.util.find_spec('flexkv_kernels')\n"
        "assert importlib.util.find_spec('triton_kernels') is None\n"
    )
    # Isolated and without site-packages: only the wheel's own files can answer.
    subprocess.run([sys.executable, "-I", "-S", "-c", program, str(tmp_path)], check=True)
