"""Which content every LoRA had when vLLM loaded it.

A worker keeps adapters by number, evicts the least recently used one, and loads it again from its
path when a request needs it; it says nothing of that. Some loads are announced (`adapter_loads`),
all others happen after the first request of the adapter was seen here. So what was there when an
adapter was announced or seen first, and is there still, is what the workers hold. As soon as that
cannot be told any more, the adapter is not cached, until a load in place is announced.

Where one is changed between the last look here and a load that follows in the same step, blocks of
its old content may be offered to the request that is scheduled then; none is ever saved.
"""

import logging
import threading
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from flexkv_connectors.vllm.adapter_files import (
    AdapterFiles,
    find_files,
    find_only_snapshot,
    is_path,
)
from flexkv_core.identity.as_read import Judge
from flexkv_core.identity.hashing import FileHasher, yield_to_others

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

__all__ = ["Adapter", "Adapters"]

logger = logging.getLogger(__name__)

_MAX_ADAPTERS = 16384
"""Some 2 KB each. None is forgotten to make room: its number could stand for anything then."""

_NOT_LOADED = "vLLM could not load it"
_NOT_FETCHED = "vLLM has not fetched it from the hub yet"
_TWO_IN_ONE = "its number has stood for two adapters"


@dataclass(slots=True, eq=False)
class Adapter:
    """One adapter as the workers hold it, from its first sight until its number means another."""

    name: str
    path: str
    is_3d: bool
    """Whether vLLM was told that its experts are stored in three dimensions."""

    files: AdapterFiles | None = None
    digest: bytes | None = None
    """Stands for its content in block keys; None until that has been read."""

    why_not: str = ""
    """Why nothing that is computed with it is kept, in one clause."""

    look: int = 0
    """The look at which its files were compared last."""

    def is_asked_by(self, lora: "LoRARequest") -> bool:
        """Whether `lora` means the same files, read in the same way."""
        return (self.path, self.is_3d) == (lora.lora_path, lora.is_3d_lora_weight)


class Adapters:
    """All adapters of one engine. Thread: the scheduler's, which is never kept waiting."""

    def __init__(
        self, settings: bytes, hub_cache: Path | None, judge: Judge, *, oldest_s: float = 0.0
    ) -> None:
        """Know none yet.

        Args:
            settings: What the engine's options change about all adapters; a digest.
            hub_cache: Where vLLM keeps adapters of the hub; None if it does not use the hub.
            judge: Tells how old files are.
            oldest_s: An adapter that nobody announced may have been loaded since then, on the clock
                of the wall; 0 if all loads but those for requests are announced.
        """
        self._settings = settings
        self._hub_cache = hub_cache
        self._judge = judge
        self._oldest_s = oldest_s
        self._adapters: dict[int, Adapter] = {}
        self._contents: dict[str, AdapterFiles | None] = {}
        """The files that each name has stood for; None after more than one content."""

        self._num_requests: Counter[int] = Counter()
        """Under way, by number: the workers may load what these need at any time."""

        self._is_full = False
        self._look = 0
        self._reader = _Reader()

    @property
    def has_work(self) -> bool:
        """Whether files are being read."""
        return self._reader.is_busy

    def look_again(self) -> None:
        """Compare files anew at the next question; once in a step is enough for all requests."""
        self._look += 1

    def begin(self, lora: "LoRARequest") -> Adapter:
        """Return the adapter of a request that is seen for the first time; `end` has to follow."""
        self.look_again()
        self._num_requests[lora.lora_int_id] += 1
        adapter = self._adapters.get(lora.lora_int_id)
        if adapter is None:
            return self._meet(lora, is_announced=False)
        if not adapter.is_asked_by(lora):
            self._give_up(adapter, _TWO_IN_ONE)
        return adapter

    def holds(self, adapter: Adapter) -> bool:
        """Return whether the workers surely hold what `adapter` says."""
        if not adapter.why_not and adapter.look != self._look:
            adapter.look = self._look
            if adapter.files is not None and adapter.files.have_changed():
                self._give_up(adapter, "its files have changed since vLLM loaded them")
        return not adapter.why_not

    def is_only_one(self, adapter: Adapter) -> bool:
        """Return whether the name of `adapter` has stood for nothing else so far."""
        return self._contents.get(adapter.name) is not None

    def begin_load(self, lora: "LoRARequest") -> None:
        """Note that vLLM is about to load an adapter; one that it holds already, it may keep."""
        self.look_again()
        adapter = self._adapters.get(lora.lora_int_id)
        is_known = adapter is not None and adapter.is_asked_by(lora)
        if adapter is None or (lora.load_inplace and not (is_known and self.holds(adapter))):
            self._meet(lora, is_announced=True)
        elif not is_known:
            self._give_up(adapter, _TWO_IN_ONE)

    def end_load(self, lora: "LoRARequest") -> None:
        """Note that the load which `begin_load` announced has succeeded."""
        adapter = self._adapters.get(lora.lora_int_id)
        if adapter is not None and adapter.why_not == _NOT_LOADED:
            adapter.why_not = "" if adapter.files is not None else _NOT_FETCHED
            self._note_fetched(adapter)

    def end(self, lora: "LoRARequest", adapter: Adapter, *, is_computed: bool) -> None:
        """Note that a request has ended, and whether anything was computed for it."""
        self._num_requests[lora.lora_int_id] -= 1
        if not self._num_requests[lora.lora_int_id]:
            del self._num_requests[lora.lora_int_id]
        if is_computed:
            self._note_fetched(adapter)

    def note_removal(self, number: int) -> None:
        """Note that the workers have removed an adapter; requests under way may load it again."""
        if number in self._num_requests:
            self.doubt(number)
        else:
            self._adapters.pop(number, None)

    def doubt(self, number: int) -> None:
        """Note that it is not known what the workers hold under `number`."""
        if number in self._adapters:
            self._give_up(self._adapters[number], "it was loaded or removed unseen")

    def _meet(self, lora: "LoRARequest", *, is_announced: bool) -> Adapter:
        """Look at what is loaded from now on, as the only adapter of its number."""
        adapter = Adapter(lora.lora_name, lora.lora_path, lora.is_3d_lora_weight)
        before = self._adapters.pop(lora.lora_int_id, None)
        if before is not None:
            before.why_not = before.why_not or "another was loaded in its place"
        if self._has_no_room():
            adapter.why_not = "too many others are known"
            return adapter
        self._adapters[lora.lora_int_id] = adapter
        try:
            files = self._find(lora, is_new=is_announced or not self._oldest_s)
        except (OSError, ValueError) as error:
            self._give_up(adapter, f"what vLLM loads cannot be told: {error}")
            return adapter
        adapter.files = files
        if is_announced:
            adapter.why_not = _NOT_LOADED
        elif files is None or not is_path(adapter.path):
            adapter.why_not = _NOT_FETCHED  # if the hub has a newer one, that is what is loaded
        if files is not None and adapter.why_not != _NOT_FETCHED:
            self._take(adapter, files)
        return adapter

    def _has_no_room(self) -> bool:
        """Whether an adapter more cannot be remembered; once so, for good."""
        if not self._is_full and max(len(self._adapters), len(self._contents)) >= _MAX_ADAPTERS:
            self._is_full = True
            logger.warning("adapter.too_many: none beyond the first %d is cached", _MAX_ADAPTERS)
        return self._is_full

    def _find(self, lora: "LoRARequest", *, is_new: bool) -> AdapterFiles | None:
        """Look at what vLLM loads from now on; None if it has to be fetched first.

        Args:
            lora: vLLM's words for it.
            is_new: Whether the workers surely have not loaded it yet.

        Raises:
            OSError: It cannot be told.
            ValueError: Its path is none: it holds a NUL, or what is no character.
        """
        if getattr(lora, "tensorizer_config_dict", None):
            msg = "it comes from tensorizer"
            raise OSError(msg)
        files = find_files(lora.lora_path, self._hub_cache)
        for stamp in () if files is None else files.stamps:
            if not stamp.is_telling:
                msg = f"the file system of {stamp.path} does not say when files change"
                raise OSError(msg)
            if not (is_new or self._judge.is_older(stamp, self._oldest_s)):
                msg = f"{stamp.path} may be younger than what is loaded already"
                raise OSError(msg)
        return files

    def _take(self, adapter: Adapter, files: AdapterFiles) -> None:
        """Believe that the workers read `files`, and begin to read them, too."""
        adapter.files = files
        if self._contents.setdefault(adapter.name, files) != files:
            self._contents[adapter.name] = None
        self._reader.read(adapter, self._settings)

    def _note_fetched(self, adapter: Adapter) -> None:
        """Note that the workers have loaded `adapter`, and so have its files."""
        if adapter.why_not != _NOT_FETCHED or self._hub_cache is None:
            return
        try:
            files = adapter.files
            if files is None or files.have_changed():
                files = find_only_snapshot(adapter.path, self._hub_cache)
        except (OSError, ValueError) as error:
            self._give_up(adapter, f"what was fetched cannot be told: {error}")
        else:
            adapter.why_not = ""
            self._take(adapter, files)

    def _give_up(self, adapter: Adapter, reason: str) -> None:
        """Keep nothing of an adapter; vLLM itself may hold KV of any content under its name."""
        self._contents[adapter.name] = None
        if adapter.why_not in ("", _NOT_LOADED, _NOT_FETCHED):
            logger.warning(
                "adapter.not_cached name=%s path=%s: %s", adapter.name, adapter.path, reason
            )
            adapter.why_not = reason


class _Reader:
    """Reads adapters, one after the other, at the expense of nobody."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[Adapter, AdapterFiles, bytes]] = SimpleQueue()
        self._num_asked = 0
        self._num_read = 0

    @property
    def is_busy(self) -> bool:
        """Whether an adapter waits for its digest."""
        return self._num_read < self._num_asked

    def read(self, adapter: Adapter, settings: bytes) -> None:
        """Find the digest of an adapter, soon."""
        assert adapter.files is not None, "the caller has found them"
        if not self._num_asked:
            threading.Thread(target=self._work, name="flexkv-adapters", daemon=True).start()
        self._num_asked += 1
        self._waiting.put((adapter, adapter.files, settings))

    def _work(self) -> None:
        yield_to_others()
        hasher = FileHasher(threading.Event(), lambda _num_bytes: None)
        while True:
            adapter, files, settings = self._waiting.get()
            try:
                content = files.digest(hasher)
                parts = (b"flexkv-adapter-v1", settings, bytes([adapter.is_3d]), content)
                adapter.digest = sha256(b"".join(parts)).digest()
                logger.info("adapter.known name=%s path=%s", adapter.name, adapter.path)
            except OSError as error:
                logger.warning(
                    "adapter.not_cached name=%s path=%s: %s", adapter.name, adapter.path, error
                )
            self._num_read += 1
