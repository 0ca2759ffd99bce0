"""A reason to compute everything that an engine's version brings along is found in its sources."""

import pytest

from compat_tests.contract.engines import Engine
from compat_tests.contract.gates import unknown_gates

TOY = Engine(
    name="toy",
    distributions=("toy",),
    package="toy",
    ours="ours",
    watched=(),
    callers=("toy.scheduler",),
    gates=(
        ("request.num_done", "at the start only"),
        ("self.connector", "ours"),
        ("request.is_private", "why_not_skip"),
        ("toy.config.Config.__init__", "why_not_reuse"),
    ),
)

SCHEDULER = """
class Scheduler:
    def schedule(self):
        while self.waiting:
            request = self.waiting.pop()
            if self.is_full or request.is_blocked:
                break
            if request.num_done == 0:
                num_local = self.look_up(request)
                if self.connector is not None:
                    answer, is_async = self.connector.get_num_new_matched_tokens(request, num_local)
                    if request.is_private:
                        answer = 0
                    {in_the_block}
                num_done = num_local + answer
                {behind_it}
            self.start(request)
"""
CONFIG = """
class Config:
    def __init__(self):
        if self.model.looks_ahead:
            self.cache.enable_prefix_caching = False
{more}
"""


@pytest.fixture
def found(tmp_path):
    """Return a function from what a version adds to the gates that we do not know."""

    def find(in_the_block="pass", behind_it="pass", more="", scheduler=SCHEDULER):
        (tmp_path / "toy").mkdir()
        source = scheduler.format(in_the_block=in_the_block, behind_it=behind_it)
        (tmp_path / "toy" / "scheduler.py").write_text(source)
        (tmp_path / "toy" / "config.py").write_text(CONFIG.format(more=more))
        findings = unknown_gates(TOY, tmp_path)
        assert all(one.is_broken and one.place == "ours/support.py" for one in findings)
        return [one.text.partition(" decides")[0] for one in findings]

    return find


def test_gates_that_we_know_are_no_finding(found):
    assert found() == []


@pytest.mark.parametrize(
    ("added", "gate"),
    [
        ("if request.wants_scores: answer = 0", "request.wants_scores"),
        ("answer = self.capped(answer)", "self.capped"),
        ("answer -= answer % self.grain", "self.grain"),
        (
            "answer, is_async = (0, False) if request.is_odd else (answer, is_async)",
            "request.is_odd",
        ),
    ],
)
def test_a_new_way_to_change_our_answer_is_found(found, added, gate):
    assert found(in_the_block=added) == [gate]


def test_a_gate_behind_the_question_is_found_where_it_changes_what_came_of_the_answer(found):
    assert found(behind_it="if self.replays: num_done = 0") == ["self.replays"]


def test_what_does_not_touch_the_answer_is_no_gate(found):
    assert found(in_the_block="if request.is_loud: print(num_local)") == []


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ("    def late(self):\n        self.cache.enable_prefix_caching = False", "Config.late"),
        ("def alone(cache):\n    cache.enable_prefix_caching = False", "alone"),
    ],
)
def test_a_new_place_that_switches_the_prefix_cache_off_is_found(found, more, path):
    assert found(more=more) == [f"toy.config.{path}"]


def test_switching_it_on_is_no_gate(found):
    assert found(more="def other(cache):\n    cache.enable_prefix_caching = True") == []


def test_a_scheduler_that_does_not_ask_where_we_look_is_a_finding(found):
    (text,) = found(scheduler="class Scheduler:\n    pass")
    assert text.startswith("the loop that asks get_num_new_matched_tokens has gone")


def test_an_engine_without_a_list_of_gates_is_not_looked_at(tmp_path):
    assert unknown_gates(TOY._replace(gates=()), tmp_path) == []
