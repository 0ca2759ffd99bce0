"""Whether vLLM may still hit pages of its own that were computed before a reset."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockHashToBlockMap, BlockPool

__all__ = ["OldPages"]


class OldPages:
    """The pages in vLLM's own prefix cache, which it cannot reset while a request has any.

    It serves them from then on, whatever the weights were. A request that hits them must not be
    saved: it would be found as computed with the weights of now.

    Thread: the scheduler's.
    """

    def __init__(self) -> None:
        """Begin before vLLM has any pages."""
        self._pool: BlockPool | None = None
        self._old: BlockHashToBlockMap | None = None
        self._seen: BlockHashToBlockMap | None = None

    def follow(self, pool: "BlockPool") -> None:
        """Note whose pages they are."""
        self._pool = pool
        self._seen = pool.cached_block_hash_to_block

    def note_reset(self) -> None:
        """Note that what is there now is old."""
        pool = self._pool
        # Pages that are being filled are in no map yet: only without any, vLLM's reset succeeded.
        are_left = pool is not None and (
            len(pool.cached_block_hash_to_block) > 0 or pool.get_usage() > 0
        )
        self._old = pool.cached_block_hash_to_block if pool is not None and are_left else None

    def saw_reset(self) -> bool:
        """Return whether vLLM has emptied its own prefix cache since the last call."""
        if self._pool is None or self._pool.cached_block_hash_to_block is self._seen:
            return False
        self._seen = self._pool.cached_block_hash_to_block
        return True

    @property
    def may_be_hit(self) -> bool:
        """Whether old pages are there: a reset of vLLM's that succeeds makes another map."""
        pool = self._pool
        return pool is not None and pool.cached_block_hash_to_block is self._old
