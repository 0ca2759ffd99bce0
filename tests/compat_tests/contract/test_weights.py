"""A call that changes weights, and that nobody listens to, is found in the engine's sources."""

import pytest

from compat_tests.contract.weights import SCHEDULER, troubles
from flexkv_connectors.sglang.weight_updates import OWNER, UPDATES

MODULE, _, NAME = OWNER.rpartition(".")


@pytest.fixture
def engine(tmp_path):
    """Return a function to a folder with an engine that has these methods and handlers."""

    def write(methods=UPDATES, handlers=("self.weight_updater.check_weights",), name=NAME):
        body = [f"    def {method}(self): ..." for method in sorted(methods)]
        pairs = ", ".join(f"(Req, {handler})" for handler in handlers)
        sources = {
            f"{MODULE.replace('.', '/')}.py": [f"class {name}:", *body],
            SCHEDULER: [
                "class Scheduler:",
                "    def init_request_dispatcher(self):",
                f"        self._request_dispatcher = TypeBasedDispatcher([{pairs}])",
            ],
        }
        for path, lines in sources.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text("\n".join(lines))
        return tmp_path

    return write


def test_known_calls_are_fine(engine):
    methods = UPDATES | {"begin_weight_update", "check_weights", "_select_runners"}
    handlers = ["self.abort_request", "lambda req: self.profiler_manager._profile(req)"]
    assert troubles(engine(methods, handlers)) == []


def test_a_new_method_is_found(engine):
    found = troubles(engine(UPDATES | {"update_weights_by_dream"}))
    assert found == [f"{NAME}.update_weights_by_dream may change weights, and is not known"]


def test_a_method_that_has_gone_is_found(engine):
    gone = "update_weights_from_ipc"
    assert troubles(engine(UPDATES - {gone})) == [f"{NAME} has no {gone}"]


def test_a_new_kind_of_request_is_found(engine):
    found = troubles(engine(handlers=["self.dream_of_weights"]))
    assert found == ["the scheduler's dream_of_weights may change weights, and is not known"]


def test_a_class_of_another_name_is_found(engine):
    assert troubles(engine(name="Renamed")) == [f"there is no {OWNER}"]


def test_a_scheduler_whose_requests_are_not_found_is_not_taken_for_fine(engine):
    assert troubles(engine(handlers=())) == ["what the scheduler does for requests is not found"]
