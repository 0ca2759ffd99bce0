"""What a router believes that an engine has, from the events that its scheduler publishes."""

from typing import Any

OURS = {"CPU", "STORAGE"}
"""Of its own, vLLM removes pages that a reset has cleared, and stores some behind them."""


class RouterView:
    """Stands in the place of vLLM's event publisher. Names are of pages, by medium."""

    def __init__(self) -> None:
        self.media: dict[str, set[int]] = {"GPU": set(), "CPU": set(), "STORAGE": set()}
        self.events: list[Any] = []
        self.num_clears = 0

    def publish(self, batch: Any) -> None:
        """Take in what one step of the scheduler tells."""
        for event in batch.events:
            self.events.append(event)
            getattr(self, f"_see_{type(event).__name__}")(event)

    def shutdown(self) -> None:
        """Do nothing: there is no socket."""

    def _see_BlockStored(self, event: Any) -> None:  # noqa: N802 named as vLLM's event
        names = event.block_hashes
        assert len(event.token_ids) == len(names) * event.block_size > 0
        if event.medium in OURS and event.parent_block_hash is not None:
            assert self._knows(event.parent_block_hash), event
        if event.extra_keys is not None:
            assert len(event.extra_keys) == len(names)
        self.media[event.medium].update(names)

    def _see_BlockRemoved(self, event: Any) -> None:  # noqa: N802 named as vLLM's event
        assert event.medium not in OURS or self.media[event.medium].issuperset(event.block_hashes)
        self.media[event.medium].difference_update(event.block_hashes)

    def _see_AllBlocksCleared(self, event: Any) -> None:  # noqa: N802 named as vLLM's event
        self.num_clears += 1
        for names in self.media.values():
            names.clear()

    def _knows(self, name: int) -> bool:
        return any(name in names for names in self.media.values())
