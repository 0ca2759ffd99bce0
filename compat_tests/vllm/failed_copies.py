"""What must hold on any engine whose copies fail, whatever vLLM's policy is: mixed into its tests.

The module that takes `FailedCopies` has the fixtures `engine` (with `engine_checks.SABOTAGED`) and
`policy`, the engine's `kv_load_failure_policy`. Host memory must hold 12 pages.
"""

import msgspec
import pytest
from engine_checks import NO_LOAD, assert_nothing_leaked, break_copies, counts
from engine_process import Ask, Completion, EngineProcess, random_tokens

HEAD = random_tokens(90, 640)
"""Whole blocks of 128 tokens, and a whole block and a half of 256."""

ASKS = [Ask(prompt=HEAD + random_tokens(seed, 420)) for seed in (91, 92, 93)]
ELSEWHERE = {"flexkv": {"namespace": "elsewhere"}}


def ask_with(ask: Ask, switches: dict) -> Ask:
    return msgspec.structs.replace(ask, kv_transfer_params=switches)


class FailedCopies:
    """The contract."""

    @pytest.fixture(scope="class")
    def truth(self, engine: EngineProcess) -> list[Completion]:
        completions = []
        for ask in ASKS:
            engine.forget_all()
            completions += engine.complete(ask)
        return completions

    @pytest.fixture
    def head(self, engine, truth):
        """Save HEAD alone; return its number of blocks."""
        engine.forget_all()
        engine.complete(Ask(prompt=HEAD, max_tokens=1))
        engine.forget()
        engine.connector("take_load_attempts")
        yield engine.connector("audit")["num_used_blocks"]
        break_copies(engine)
        assert_nothing_leaked(engine)

    def check(self, policy, truth, answers):
        """Hold answers to requests whose loads failed against the engine's policy."""
        if policy == "fail":
            assert {("error", ())} == {(a.finish_reason, tuple(a.tokens)) for a in answers}
        else:
            assert [t.tokens for t in truth] == [a.tokens for a in answers]

    @pytest.mark.parametrize("num_good_blocks", [0, 1])
    def test_a_failed_load_is_tried_once_and_answered_as_the_policy_says(
        self, engine, policy, truth, head, num_good_blocks
    ):
        before = counts(engine)["load_failed_blocks"]
        break_copies(engine, loads="fail", num_good_blocks=num_good_blocks)

        answers = engine.complete(ASKS[0])

        self.check(policy, truth[:1], answers)
        assert engine.connector("take_load_attempts") == [1]
        assert head - num_good_blocks == counts(engine)["load_failed_blocks"] - before

    def test_requests_that_share_what_fails_are_tried_once_each(self, engine, policy, truth, head):
        break_copies(engine, loads="fail")

        answers = engine.complete(*ASKS)

        assert max(engine.connector("take_load_attempts")) == 1
        unlike = [a for t, a in zip(truth, answers, strict=True) if a.tokens != t.tokens]
        assert bool(unlike) == (policy == "fail")
        self.check(policy, [], unlike)

    @pytest.mark.parametrize("num_good_blocks", [0, 1])
    def test_a_failed_load_leaves_nothing_wrong_in_the_engines_own_cache(
        self, engine, truth, head, num_good_blocks
    ):
        break_copies(engine, loads="fail", num_good_blocks=num_good_blocks)
        engine.complete(*ASKS)

        answers = engine.complete_each(ask_with(ask, NO_LOAD) for ask in ASKS)

        assert [t.tokens for t in truth] == [a.tokens for a in answers]

    @pytest.mark.parametrize("num_good_blocks", [0, 1])
    def test_a_failed_load_leaves_nothing_wrong_in_host_memory(
        self, engine, truth, head, num_good_blocks
    ):
        """What is computed in the step of a load that fails is computed from rubbish."""
        break_copies(engine, loads="fail", num_good_blocks=num_good_blocks)
        engine.complete(*ASKS[:2])
        engine.complete(ASKS[2])
        break_copies(engine)

        engine.forget()
        answers = engine.complete_each(ASKS)

        assert [t.tokens for t in truth] == [a.tokens for a in answers]

    def test_a_failed_load_leaves_nothing_wrong_in_other_namespaces(self, engine, truth, head):
        """The engine's own cache does not know our namespaces: these requests share pages."""
        break_copies(engine, loads="fail")
        engine.complete(ASKS[0], ask_with(ASKS[1], ELSEWHERE))
        break_copies(engine)

        engine.forget()
        answers = engine.complete_each([ASKS[0], ask_with(ASKS[1], ELSEWHERE)])

        assert [t.tokens for t in truth[:2]] == [a.tokens for a in answers]

    def test_a_block_that_failed_is_dropped_and_fails_no_second_request(
        self, engine, policy, truth, head
    ):
        """Else, as vLLM's default policy is, every request that begins like this would fail."""
        break_copies(engine, loads="fail")
        failed = engine.complete(ASKS[0])
        engine.forget()
        engine.connector("take_load_attempts")
        second = engine.complete(ASKS[0])

        self.check(policy, truth[:1], failed)
        assert [truth[0].tokens] == [a.tokens for a in second]
        if policy == "fail":
            assert engine.connector("take_load_attempts") == []

    def test_the_engine_serves_others_beside_a_failed_load_and_saves_after_it(
        self, engine, policy, truth, head
    ):
        neighbour = Ask(prompt=random_tokens(94, 300))
        break_copies(engine, loads="fail")
        failed, beside = engine.complete(ASKS[0], neighbour)
        break_copies(engine)
        engine.forget()
        engine.complete(ASKS[0])
        engine.forget()
        loaded, again = engine.complete_each([ASKS[0], neighbour])

        self.check(policy, truth[:1], [failed])
        assert (loaded.num_cached_tokens, loaded.tokens) == (1024, truth[0].tokens)
        assert (again.num_cached_tokens, again.tokens) == (256, beside.tokens)

    def test_a_failed_save_is_a_miss_and_is_saved_by_the_next_request(self, engine, truth):
        engine.forget_all()
        before = counts(engine)["save_failed_blocks"]
        break_copies(engine, saves="fail")
        (unsaved,) = engine.complete(ASKS[0])
        failed_blocks = counts(engine)["save_failed_blocks"] - before
        break_copies(engine)
        engine.forget()
        (miss,) = engine.complete(ASKS[0])
        engine.forget()
        (hit,) = engine.complete(ASKS[0])

        assert failed_blocks > 0
        assert [truth[0].tokens] * 3 == [unsaved.tokens, miss.tokens, hit.tokens]
        assert (unsaved.num_cached_tokens, miss.num_cached_tokens) == (0, 0)
        assert hit.num_cached_tokens >= 1024
