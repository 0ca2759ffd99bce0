"""Routers that follow llm-d's rules give our blocks the scores that they are worth."""

import dataclasses
import json
import subprocess
import sys
from itertools import count
from pathlib import Path

import msgspec
import pytest

from flexkv_connectors.announcer import Announcer, BlockPages, PageKind, pack_tokens
from flexkv_connectors.vllm.events import events_of
from flexkv_core.block.types import BlockKey
from flexkv_core.events import BlocksRemoved, BlocksStored

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "vllm")]

from llmd import Index, RefusedError, block_keys, root_key  # noqa: E402 see above

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's are not about us
GOLDEN = json.loads((HERE / "llmd_golden.json").read_text())
CONNECTOR = {
    "kv_connector": "FlexKVConnector",
    "kv_connector_module_path": "flexkv_connectors.vllm.connector",
}
PAGE, BLOCK = 4, 8  # of the simulated engine, in tokens
PROMPT = list(range(100, 132))
NUM_PAGES = len(PROMPT) // PAGE
SALT = "salt"
TOPIC = "kv@pod@m"
HOST = 0.8
KEY = BlockKey(bytes(32))


def named(golden):
    """Return the parameters of a test: one by one what llm-d has answered."""
    return [pytest.param(one, id=one["name"]) for one in golden]


def tokens_of(golden):
    first, last = golden["prompt"]
    return list(range(first, last + 1))


@pytest.mark.parametrize("chain", named(GOLDEN["chains"]))
def test_keys_are_those_of_llmd(chain):
    parent = chain["parent"] or root_key(chain["model"], chain["seed"])
    keys = block_keys(tokens_of(chain), chain["block"], parent, chain["extra_keys"])
    assert keys == chain["keys"]


@pytest.mark.parametrize("case", named(GOLDEN["cases"]))
def test_scores_are_those_of_llmd(case):
    index = Index(case["block"], weights=case["weights"])
    for frame in case["frames"]:
        payload = bytes.fromhex(frame["payload"])
        if frame["refused"]:
            with pytest.raises(RefusedError):
                index.ingest(frame["topic"], payload)
        else:
            index.ingest(frame["topic"], payload)
    assert index.score(tokens_of(case), case["model"], case["extra_keys"]) == case["scores"]


def encoded(batch):
    """Encode a batch as vLLM's ZmqEventPublisher does."""
    batch.data_parallel_rank = 0
    return msgspec.msgpack.Encoder().encode(batch)


class Pod:
    """vLLM's scheduler with our connector, and the frames that it publishes."""

    def __init__(self, base, **shape):
        from scheduler_harness import Shape, SimulatedEngine

        self.engine = SimulatedEngine(base, Shape(**shape))
        self.engine.scheduler.kv_event_publisher = self
        self._num_pages = self.engine.scheduler.kv_cache_manager.block_pool.num_gpu_blocks
        self._others = count(1000, 100)
        self._frames = []

    def publish(self, batch):
        """Take vLLM's publisher's place."""
        self._frames.append(encoded(batch))

    def shutdown(self):
        """Nothing is to be ended."""

    def serve(self, prompt, salt=""):
        self.engine.add(prompt, 1, salt)
        self.engine.drain()

    def lose_pages(self):
        """Let vLLM need all its pages for other prompts, of which nothing is kept."""
        self._serve_others(self._num_pages * PAGE, flexkv={"save": False})

    def lose_host_memory(self, until=lambda: False):
        """Let the blocks of other prompts need all of it, or as much as will do."""
        manager = self.engine.scheduler.connector._scheduler.session.manager
        num_blocks = manager.num_used_blocks() + manager.num_free_blocks()
        self._serve_others(2 * num_blocks * BLOCK, until)

    def _serve_others(self, num_tokens, until=lambda: False, **params):
        for _ in range(0, num_tokens, 2 * BLOCK):
            if until():
                return
            first = next(self._others)
            self.engine.add(list(range(first, first + 2 * BLOCK)), 1, **params)
            self.engine.drain()

    def step(self):
        """Let vLLM publish what there is: it asks after a batch only."""
        self.serve([1])

    def score(self, prompt=PROMPT, canonical=PAGE, extra_keys=None, **weights):
        """Return what a router makes of all frames so far."""
        index = Index(canonical, weights=weights)
        for frame in self._frames:
            index.ingest(TOPIC, frame)
        return index.score(prompt, "m", extra_keys).get("pod", 0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return the configuration of an engine whose events are on."""
    from environment import restored_environment, safe_environment
    from scheduler_harness import base_config
    from vllm.config import KVEventsConfig

    folder = tmp_path_factory.mktemp("models")
    command = [sys.executable, HERE.parent / "models.py", "oracle", folder]
    done = subprocess.run(
        command, env=safe_environment(), check=True, capture_output=True, text=True
    )
    with restored_environment():
        base = base_config(Path(done.stdout.strip()), CONNECTOR)
        base.kv_events_config = KVEventsConfig(enable_kv_cache_events=True, publisher="null")
        yield base


@pytest.fixture
def start(base):
    """Return a function that starts an engine."""
    pods = []

    def start(**shape):
        pods.append(Pod(base, **shape))
        return pods[-1]

    yield start
    for pod in pods:
        pod.engine.close()


@pytest.fixture
def ssd(tmp_path):
    """Return the options of an SSD tier."""
    return {"ssd_cache_gb": 0.01, "ssd_cache_dir": str(tmp_path)}


@pytest.mark.parametrize("canonical", [PAGE // 4, PAGE // 2, PAGE, 2 * PAGE])
def test_blocks_in_host_memory_count_as_such(start, canonical):
    """Where a block of llm-d is smaller than a page of vLLM, as large, and larger."""
    pod = start()
    pod.serve(PROMPT)
    assert pod.score(canonical=canonical) == len(PROMPT) // canonical
    pod.lose_pages()
    assert pod.score(canonical=canonical) == pytest.approx(HOST * len(PROMPT) / canonical)


def test_blocks_of_a_prompt_whose_head_vllm_still_has_count_as_both(start):
    pod = start()
    pod.serve(PROMPT)
    pod.lose_pages()
    pod.serve(PROMPT[:16])
    assert pod.score() == pytest.approx(16 / PAGE + HOST * 16 / PAGE)


def test_blocks_that_leave_host_memory_are_still_vllms(start):
    pod = start(num_pages=400)
    pod.serve(PROMPT)
    pod.lose_host_memory()
    assert pod.score() == NUM_PAGES
    assert pod.score(gpu=0.0) == 0.0


def test_blocks_that_were_everywhere_are_nowhere_in_the_end(start):
    pod = start()
    pod.serve(PROMPT)
    pod.lose_host_memory()
    pod.lose_pages()
    assert pod.score() == 0.0


def test_a_reset_of_host_memory_leaves_what_vllm_has(start):
    pod = start()
    pod.serve(PROMPT)
    pod.engine.scheduler.connector.reset_cache()
    pod.step()
    assert pod.score() == NUM_PAGES
    pod.lose_pages()
    assert pod.score() == 0.0


def test_after_a_reset_blocks_are_announced_again(start):
    pod = start()
    pod.serve(PROMPT)
    pod.engine.scheduler.connector.reset_cache()
    pod.lose_pages()
    pod.serve(PROMPT)
    pod.lose_pages()
    assert pod.score() == pytest.approx(HOST * NUM_PAGES)


def test_blocks_on_ssd_count_like_a_gpu_unless_the_operator_says_otherwise(start, ssd):
    pod = start(options=ssd)
    pod.serve(PROMPT)
    pod.lose_pages()
    assert pod.score() == NUM_PAGES
    assert pod.score(storage=0.3) == pytest.approx(HOST * NUM_PAGES)
    pod.lose_host_memory()
    assert pod.score(storage=0.3) == pytest.approx(0.3 * NUM_PAGES)


def test_salted_blocks_are_found_with_their_salt_alone(start):
    pod = start()
    pod.serve(PROMPT, SALT)
    pod.lose_pages()
    assert pod.score() == 0.0
    salted = [[SALT]] + [None] * (NUM_PAGES - 1)
    assert pod.score(extra_keys=salted) == pytest.approx(HOST * NUM_PAGES)


def test_host_memory_counts_again_once_a_request_comes_after_a_reset_of_vllm(start):
    """Such a reset tells routers that the pod has nothing left in any tier."""
    pod = start()
    pod.serve(PROMPT)
    pod.engine.reset(running=False, connector=False)
    pod.step()
    assert pod.score() == 0.0
    pod.serve(PROMPT)
    pod.lose_pages()
    assert pod.score() == pytest.approx(HOST * NUM_PAGES)


def test_what_an_earlier_engine_left_on_ssd_counts_once_a_request_comes(start, ssd):
    pod = start(options=ssd)
    pod.serve(PROMPT)
    pod.engine.close()
    pod = start(options=ssd)
    pod.step()
    assert pod.score() == 0.0
    pod.serve(PROMPT)
    pod.lose_pages()
    assert pod.score(storage=0.3, cpu=0.0) == pytest.approx(0.3 * NUM_PAGES)


def test_a_page_that_two_prompts_share_stays_until_both_have_left(start):
    """They part within a block of ours, so that it is in two blocks."""
    pod = start(cpu_cache_gb=1e-4)
    older = PROMPT[:PAGE] + PROMPT[: 3 * PAGE]
    pod.serve(older)
    pod.serve(PROMPT)
    assert pod.score(older, gpu=0.0) == pytest.approx(HOST * len(older) / PAGE)
    pod.lose_host_memory(until=lambda: pod.score(older, gpu=0.0) == HOST)
    assert pod.score(gpu=0.0) == pytest.approx(HOST * NUM_PAGES)
    pod.lose_host_memory()
    assert pod.score(gpu=0.0) == 0.0


def test_blocks_of_an_adapter_are_said_as_vllm_says_them(tmp_path):
    """It repeats the name in the keys of every page, where llm-d does not ask for it."""
    from half_rig import NUM_TOKENS, compute, deployment_in, ready_half_of, request_of, saved
    from half_rig import PROMPT as LONG
    from test_events import LORA, ReadAdapters
    from vllm.distributed.kv_events import KVEventBatch

    deployment = dataclasses.replace(deployment_in(tmp_path), publishes_events=True)
    half = ready_half_of(deployment, ReadAdapters())
    request = request_of(lora=LORA)
    half.match(request, 0)
    saved(half, compute(half, request))
    frame = encoded(KVEventBatch(ts=0.0, events=[*half.take_events()]))
    index = Index()
    index.ingest(TOPIC, frame)
    num_keys = NUM_TOKENS // 16
    found = index.score(LONG, LORA.name, [[LORA.name]] * num_keys)
    assert found == {"pod": pytest.approx(HOST * num_keys)}
    assert index.score(LONG, LORA.name) == index.score(LONG, "m") == {}


def test_blocks_of_a_cache_group_come_and_go_as_below_vllms_offloading():
    """There every page is said with its group, of which llm-d has to know the kind."""
    from vllm.distributed.kv_events import KVEventBatch

    kind = PageKind(len(PROMPT) // 2, group=(0, "full_attention", None))
    announcer, index = Announcer(), Index(PAGE)
    announcer.expect([KEY], [BlockPages((2**40, 2**41), None, pack_tokens(PROMPT), kind)])
    scores = []
    for event in (BlocksStored("host", [KEY]), BlocksRemoved("host", [KEY])):
        announcer.log.append(event)
        events = [*events_of(announcer.take())]
        index.ingest(TOPIC, encoded(KVEventBatch(ts=0.0, events=events)))
        scores.append(index.score(PROMPT, "m"))
    assert scores == [{"pod": pytest.approx(HOST * NUM_PAGES)}, {}]
