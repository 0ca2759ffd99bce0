"""An engine that plays TensorRT-LLM's call order on plain memory, one thread a rank.

The order, from `PyExecutor` and `KvCacheConnectorManager` @ 1.1 to 1.4: place new requests (match,
pages), describe the batch, broadcast metadata, start loads, forward, wait for saves, sample, end
requests, ask every rank what has finished. A request that loads leaves the batch until every rank
has returned it. An idle engine blocks until the next request: it calls nobody. What the real one
punishes with an exception is asserted here.

KV is a hash of all tokens up to a position, so wrong bytes are seen wherever they come from.
"""

import json
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from types import SimpleNamespace

import torch

from compat_tests.contract.tensorrt_llm import GENERATIONS, forget_connector, stand_ins

PAGE = 4
LAYERS = 2
HEADS = 2
SIZE = 8
POISON = -1.0
MANY_LOOPS = 500

CONFIG = {
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2 * HEADS,
    "num_key_value_heads": HEADS,
    "hidden_size": 2 * HEADS * SIZE,
    "torch_dtype": "float32",
}


def kv_of(tokens, scope):
    """Return the KV of the last of `tokens`: `[layers, planes, heads, size]`."""
    seed = sha256(repr((scope, tuple(tokens))).encode()).digest()
    count = LAYERS * 2 * HEADS * SIZE
    numbers = (seed * (count // len(seed) + 1))[:count]
    kv = torch.frombuffer(bytearray(numbers), dtype=torch.uint8).float()
    return kv.view(LAYERS, 2, HEADS, SIZE) + torch.arange(SIZE) / SIZE


def arguments_for(folder, ranks=1, **changes):
    """Return the engine's arguments, with a checkpoint in `folder`."""
    (folder / "config.json").write_text(json.dumps(CONFIG | changes.pop("config", {})))
    (folder / "model.safetensors").write_bytes(b"weights")
    kv_cache = {"dtype": "auto", "tokens_per_block": PAGE, "max_attention_window": None}
    plain = {
        "model": str(folder),
        "dtype": "auto",
        "load_format": "auto",
        "max_seq_len": 128,
        "max_num_tokens": None,
        "attn_backend": "TRTLLM",
        "tensor_parallel_size": ranks,
        "pipeline_parallel_size": 1,
        "context_parallel_size": 1,
        "gpus_per_node": 8,
        "max_beam_width": 1,
        "enable_attention_dp": False,
        "speculative_config": None,
        "kv_cache_config": SimpleNamespace(**(kv_cache | changes.pop("kv_cache_config", {}))),
    }
    return SimpleNamespace(**(plain | changes))


@dataclass(eq=False)
class Request:
    """A request as the connector sees it, and what the engine knows of it."""

    request_id: int
    tokens: list
    cache_salt: str | None = None
    lora_task_id: int | None = None
    num_new: int = 2
    """Tokens to generate."""

    num_local: int = 0
    """Tokens that the engine's own prefix cache has."""

    num_computed: int = 0
    num_loaded: int = 0
    num_prompt: int = 0
    pages: list = field(default_factory=list)
    phase: str = "new"
    num_told_pages: int = 0
    num_told_tokens: int = 0

    def __post_init__(self):
        self.num_prompt = len(self.tokens)

    def get_tokens(self, beam):
        assert beam == 0
        return list(self.tokens)

    @property
    def scope(self):
        return self.cache_salt, self.lora_task_id


class Ranks:
    """Runs something on every rank at once; collectives meet in the middle."""

    def __init__(self, number):
        self.number = number
        self._threads = ThreadPoolExecutor(number)
        self._meeting = threading.Barrier(number, timeout=60)
        self._items = [None] * number
        self._local = threading.local()
        self.num_gathers = 0

    def rank(self):
        return getattr(self._local, "rank", 0)

    def gather(self, item):
        rank = self.rank()
        self._items[rank] = pickle.dumps(item)
        if self._meeting.wait() == 0:
            self.num_gathers += 1
        items = [pickle.loads(item) for item in self._items]
        self._meeting.wait()
        return items

    def run(self, work):
        def on(rank):
            self._local.rank = rank
            return work(rank)

        return [
            future.result() for future in [self._threads.submit(on, r) for r in range(self.number)]
        ]


class Engine:
    """One engine with its connector."""

    def __init__(self, folder, *, ranks=1, chunk=64, num_pages=64, generation=1, **changes):
        self.arguments = arguments_for(folder, ranks, **changes)
        self.ranks = Ranks(ranks)
        forget_connector()
        self._install(GENERATIONS[generation])
        from flexkv_connectors.tensorrt_llm import FlexKVScheduler, FlexKVWorker

        # On rank 0 the engine builds both at the same time, in threads of their own.
        with ThreadPoolExecutor(1) as threads:
            scheduler = threads.submit(FlexKVScheduler, self.arguments)
            self.workers = self.ranks.run(lambda rank: FlexKVWorker(self.arguments))
            self.scheduler = scheduler.result()
        self.heads = HEADS // ranks if ranks <= HEADS else 1
        self.share = max(1, ranks // HEADS)
        row = self.heads * PAGE * SIZE
        self.pools = [torch.full((num_pages, LAYERS, 2, row), POISON) for _ in range(ranks)]
        self.chunk = chunk
        self.free = list(range(1, num_pages))
        self.active = []
        self.loading = {}
        self.ending = {}
        self.handed_in = [(set(), set()) for _ in range(ranks)]
        self.answered = [(set(), set()) for _ in range(ranks)]
        self.offers = {}
        self.num_computed_tokens = 0

    def _install(self, generation):
        """Put what the connector imports of the engine into `sys.modules`."""
        ranks = self.ranks
        sys.modules.update(stand_ins(generation, rank=ranks.rank, gather=ranks.gather))

    def register(self):
        self.ranks.run(lambda rank: self.workers[rank].register_kv_caches(self.pools[rank]))
        return self

    def close(self):
        self.scheduler.shutdown()
        self.ranks.run(lambda rank: self.workers[rank].shutdown())

    # What a rank's pages hold.

    def cells(self, rank, page):
        """View a page as the engine's kernels do: `[layers, planes, heads, tokens, size]`."""
        return self.pools[rank][page].view(LAYERS, 2, self.heads, PAGE, SIZE)

    def heads_of(self, rank):
        first = rank // self.share * self.heads
        return slice(first, first + self.heads)

    def write(self, request, position):
        kv = kv_of(request.tokens[: position + 1], request.scope)
        for rank in range(self.ranks.number):
            page = request.pages[position // PAGE]
            self.cells(rank, page)[..., position % PAGE, :] = kv[:, :, self.heads_of(rank)]

    def check(self, request, num_tokens):
        """Assert that all KV before `num_tokens` is right on every rank."""
        for position in range(num_tokens):
            kv = kv_of(request.tokens[: position + 1], request.scope)
            for rank in range(self.ranks.number):
                got = self.cells(rank, request.pages[position // PAGE])[..., position % PAGE, :]
                assert torch.equal(got, kv[:, :, self.heads_of(rank)]), (request, rank, position)

    # One loop of the executor.

    def submit(self, request):
        self.active.append(request)
        return request

    def iterate(self):
        """Run one loop; an idle engine waits for a request instead, and calls nobody."""
        if self.is_idle:
            return
        batch = [request for request in self.active if request.phase in ("new", "run")]
        started = [request for request in batch if request.phase == "new" and self._place(request)]
        batch = [request for request in batch if request.phase == "run"]
        if batch or started:
            self._step(batch, started)
        self._ask([request.request_id for request in started])

    def run(self, *requests):
        """Serve requests to their ends."""
        for request in requests:
            self.submit(request)
        for _ in range(MANY_LOOPS):
            if self.is_idle:
                break
            self.iterate()
        assert self.is_idle, "a request waits for ever"
        return requests[0] if requests else None

    @property
    def is_idle(self):
        return not (self.active or self.loading or self.ending)

    def _place(self, request):
        """Give a request its pages; return whether it loads beside the batch."""
        num_tokens, is_async = self._match(request)
        assert request.num_local + num_tokens < request.num_prompt, "one token has to be computed"
        self.offers[request.request_id] = num_tokens
        self._grow(request, request.num_prompt)
        for position in range(request.num_local):
            self.write(request, position)
        self._accept(request)
        request.num_computed = request.num_local + num_tokens
        request.num_loaded = 0 if is_async else num_tokens
        request.phase = "loading" if is_async else "run"
        if is_async:
            self.loading[request.request_id] = request
        return is_async

    def _match(self, request):
        num_tokens, is_async = self.scheduler.get_num_new_matched_tokens(request, request.num_local)
        assert num_tokens or not is_async, "the engine raises on (0, True)"
        return num_tokens, is_async

    def _accept(self, request):
        self.scheduler.update_state_after_alloc(request, list(request.pages))

    def _grow(self, request, num_tokens):
        while len(request.pages) * PAGE < num_tokens:
            page = self.free.pop(0)
            for pool in self.pools:
                pool[page] = POISON
            request.pages.append(page)

    def _step(self, batch, started):
        for request in batch:
            self._grow(request, len(request.tokens))
        self._announce(batch, started)
        self.ranks.run(lambda rank: self._before(self.workers[rank]))
        for request in batch:
            self._forward(request)
        self.ranks.run(lambda rank: self.workers[rank].wait_for_save(None))
        for request in batch:
            self._sample(request)

    def _announce(self, batch, started):
        """Describe the batch to the scheduler, and bring its metadata to every worker."""
        metadata = pickle.dumps(self.scheduler.build_connector_meta(self._describe(batch)))
        self.ranks.run(lambda rank: self.workers[rank].bind_connector_meta(pickle.loads(metadata)))

    @staticmethod
    def _before(worker):
        worker.start_load_kv(None)
        for layer in range(LAYERS):
            worker.wait_for_layer_load(layer, None)
            worker.save_kv_layer(layer, None)

    def _describe(self, batch):
        output = SimpleNamespace(new_requests=[], cached_requests=[], attention_dp_rank=None)
        for request in batch:
            is_new = request.num_told_tokens == 0
            data = SimpleNamespace(
                request_id=request.request_id,
                new_tokens=request.tokens[request.num_told_tokens :],
                new_block_ids=request.pages[request.num_told_pages :],
                computed_position=request.num_computed - request.num_loaded,
                num_scheduled_tokens=self._num_scheduled(request),
            )
            request.num_loaded = 0
            request.num_told_tokens, request.num_told_pages = (
                len(request.tokens),
                len(request.pages),
            )
            (output.new_requests if is_new else output.cached_requests).append(data)
        return output

    def _num_scheduled(self, request):
        return min(self.chunk, len(request.tokens) - request.num_computed)

    def _forward(self, request):
        self.check(request, request.num_computed)
        end = request.num_computed + self._num_scheduled(request)
        for position in range(request.num_computed, end):
            self.write(request, position)
            self.num_computed_tokens += 1
        request.num_computed = end

    def _sample(self, request):
        if request.num_computed < len(request.tokens):
            return
        request.tokens.append(1000 + len(request.tokens))
        if len(request.tokens) >= request.num_prompt + request.num_new:
            self.end(request)

    def end(self, request):
        """End a request, or abort it wherever it is."""
        self.active.remove(request)
        request.phase = "ended"
        if self._is_saving(request):
            self.ending[request.request_id] = request
        else:
            assert request.request_id not in self.loading, "pages would be written to after this"
            self._free(request)

    def _is_saving(self, request):
        return self.scheduler.request_finished(request, list(request.pages))

    def _free(self, request):
        for page in request.pages:
            for pool in self.pools:
                pool[page] = POISON
        self.free += request.pages

    def _ask(self, started):
        ending = [number for number in self.ending if number not in self.handed_in[0][0]]
        finished = self.ranks.run(
            lambda rank: self.workers[rank].get_finished(list(ending), list(started))
        )
        for rank, (saved, loaded) in enumerate(finished):
            given, answered = self.handed_in[rank], self.answered[rank]
            given[0].update(ending)
            given[1].update(started)
            for kind, numbers in enumerate((saved, loaded)):
                assert set(numbers) <= given[kind] - answered[kind], "a KeyError in the engine"
                answered[kind].update(numbers)
        for number in [n for n in self.loading if all(n in seen[1] for seen in self.answered)]:
            request = self.loading.pop(number)
            if request.phase == "loading":
                request.phase = "run"
        for number in [n for n in self.ending if all(n in seen[0] for seen in self.answered)]:
            self._free(self.ending.pop(number))
