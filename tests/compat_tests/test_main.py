"""The exit status tells apart what fits, what is broken, and what could not be checked."""

import pytest

from compat_tests import __main__ as command
from compat_tests.contract.check import Verdict
from compat_tests.contract.fit import Finding
from compat_tests.contract.sources import CannotCheckError

CONTRACT = ["contract", "--engine", "vllm", "--version", "1.0"]


@pytest.fixture
def check(mocker):
    return mocker.patch.object(command, "check")


def verdict(*findings):
    return Verdict("vllm", "1.0", list(findings), 3, "", [])


def test_what_fits_is_0(check, capsys):
    check.return_value = verdict(Finding(False, "A has no b", "c.py:1"))
    assert command.main(CONTRACT) == 0
    assert "vllm 1.0: fits" in capsys.readouterr().out


def test_what_is_broken_is_1_and_names_our_line(check, capsys):
    check.return_value = verdict(Finding(True, "A has no b", "c.py:1"))
    assert command.main(CONTRACT) == 1
    assert "broken   c.py:1  A has no b" in capsys.readouterr().out


def test_what_could_not_be_checked_is_2_in_one_line(check, capsys):
    check.side_effect = CannotCheckError("no network")
    assert command.main(CONTRACT) == 2
    assert capsys.readouterr().err == "could not check: no network\n"
