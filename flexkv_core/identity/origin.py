"""Where a deployment's namespace comes from: the engine's settings at once, its files later."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flexkv_core.block.namespace import Namespace
from flexkv_core.config import CacheConfig
from flexkv_core.env import engine_start_s
from flexkv_core.identity.checkpoint import FROM_THE_CHECKPOINT, Checkpoint, find_checkpoint
from flexkv_core.identity.identification import Identification

__all__ = ["UNSEEN_S", "Origin", "source_of", "why_not_read"]

UNSEEN_S = 600.0
"""`Origin.unseen_s` if Ray or MPI starts the workers: longer than that takes."""


def why_not_read(load_format: str) -> str | None:
    """Return why a load format keeps unnamed weights from being told apart, if it does."""
    if load_format in FROM_THE_CHECKPOINT:
        return None
    return f"load_format={load_format} does not say which weights: set weight_version"


def source_of(
    model: str,
    revision: str | None,
    *,
    hub_cache: Path,
    load_format: str,
    runs_code: bool,
    cache: CacheConfig,
) -> Checkpoint:
    """Return where `model` is read from, and whether its weight files are part of its identity.

    If the user names the weights, files count only if they exist and hold the weights, and the user
    has not said that the name is enough.
    """
    is_named = bool(cache.weight_version)
    has_files = find_checkpoint(model, revision, hub_cache=hub_cache) is not None
    holds_weights = load_format in FROM_THE_CHECKPOINT and not cache.trust_weight_version
    return Checkpoint(
        model=model,
        revision=revision,
        hub_cache=hub_cache,
        load_format=load_format,
        runs_code=runs_code,
        weights=not is_named or (has_files and holds_weights),
    )


@dataclass(frozen=True, slots=True)
class Origin:
    """All that decides which bytes the blocks of a deployment hold.

    Raises:
        ConfigError: A setting has no comparable form.
    """

    sources: Mapping[str, Checkpoint]
    """By their role for the engine, such as "model"."""

    describe: Callable[[Mapping[str, str]], Namespace]
    """Makes the namespace from the identity of each source."""

    unseen_s: float = 0.0
    """How long before this process its engine may have begun to read, if another program starts
    the engine's processes and they do not know when the first one started."""

    def __post_init__(self) -> None:
        _ = self.blank  # made once now, so that a bad setting is rejected at the engine's start

    @property
    def blank(self) -> Namespace:
        """The namespace with every identity left empty; no block is stored under it."""
        return self.describe(dict.fromkeys(self.sources, ""))

    def find(self, cache: CacheConfig, then: Callable[[Namespace], None]) -> Identification:
        """Find the namespace, and call `then` with it: at once, or from a thread, or never.

        Args:
            cache: Its SSD directories remember digests of files.
            then: Called at most once; see `Identification`.
        """
        return Identification(
            self.sources,
            cache.ssd_directories,
            engine_start_s() - self.unseen_s,
            lambda found: then(self.describe(found)),
        )
