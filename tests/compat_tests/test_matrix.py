"""The matrix says of every version what is known, and is red for a supported one that fails."""

import json

import pytest

from compat_tests import matrix
from compat_tests.contract.check import Verdict
from compat_tests.contract.engines import Engine
from compat_tests.contract.fit import Finding
from compat_tests.contract.sources import CannotCheckError

TOY = Engine("vllm", ("vllm",), "vllm", "ours", watched=(), versions=("0.27.1", "0.33.0", "0.32.0"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "FOLDER", tmp_path)
    monkeypatch.setattr(matrix, "ENGINES", {"vllm": TOY})
    return tmp_path


@pytest.fixture
def build(monkeypatch):
    """Return a function that builds a matrix of which `broken` do not fit and `absent` are not."""

    def check(engine, version, ours):
        if version in absent:
            raise CannotCheckError("no such <wheel>")
        findings = [Finding(True, "A has no b", "c.py:1")] if version in broken else []
        return Verdict("vllm", version, findings, 3, "", [])

    broken, absent = set(), set()
    monkeypatch.setattr(matrix, "check", check)
    drift = {"since": "0.1", "changes": 2, "used": ["removed A.b (c.py:1)"]}
    monkeypatch.setattr(matrix, "_drift", lambda *_: drift)

    def run(*, breaks=(), lacks=()):
        broken.update(breaks)
        absent.update(lacks)
        return matrix.build([TOY])

    return run


def test_rows_are_in_the_order_of_versions(build):
    assert [row["version"] for row in build()["rows"]] == ["0.27.1", "0.32.0", "0.33.0"]


def test_a_supported_version_that_breaks_is_trouble(build):
    assert matrix.trouble(build(breaks=["0.33.0"])) == ["vllm 0.33.0: contract broken"]


def test_a_supported_version_that_cannot_be_checked_is_trouble(build):
    assert matrix.trouble(build(lacks=["0.33.0"])) == ["vllm 0.33.0: contract could not check"]


def test_an_engine_without_wheels_on_the_index_is_no_trouble(build, monkeypatch):
    monkeypatch.setattr(matrix, "ENGINES", {"vllm": TOY._replace(has_wheels=False)})
    table = build(lacks=["0.33.0"])
    assert table["rows"][-1]["contract"] == "could not check"
    assert matrix.trouble(table) == []


def test_a_version_that_is_refused_anyway_is_none(build):
    table = build(breaks=["0.27.1"])
    assert table["rows"][0]["contract"] == "broken"
    assert matrix.trouble(table) == []


def test_a_run_is_kept_when_contracts_are_checked_again(build):
    matrix.write(build())
    matrix.note_run("vllm", "0.32.0", "live", "failed")
    table = build()
    assert table["runs"] == {"vllm 0.32.0": {"live": "failed"}}
    assert matrix.trouble(table) == ["vllm 0.32.0: live failed"]


def test_all_three_forms_say_the_same(build, folder):
    matrix.write(build(breaks=["0.33.0"], lacks=["0.32.0"]))
    data = json.loads((folder / "matrix.json").read_text())
    assert [row["contract"] for row in data["rows"]] == ["fits", "could not check", "broken"]
    for name in ("MATRIX.md", "matrix.html"):
        text = (folder / name).read_text()
        assert "A has no b" in text
        assert "could not check" in text
        assert "2 since 0.1" in text


def test_what_engines_say_is_text_in_html(build, folder):
    matrix.write(build(lacks=["0.32.0"]))
    assert "no such &lt;wheel&gt;" in (folder / "matrix.html").read_text()
