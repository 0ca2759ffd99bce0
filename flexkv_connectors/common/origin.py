"""What a deployment's blocks are blocks of: the engine's settings at once, its files later."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flexkv_core.config import CacheConfig
from flexkv_core.env import engine_start_s
from flexkv_core.identity.checkpoint import Checkpoint, find_checkpoint
from flexkv_core.identity.identification import Identification
from flexkv_core.namespace import Namespace

__all__ = ["FROM_THE_CHECKPOINT", "Origin", "Source", "source_of"]

FROM_THE_CHECKPOINT = frozenset(
    {
        "auto",
        "fastsafetensors",
        "hf",
        "instanttensor",
        "mistral",
        "npcache",
        "pt",
        "runai_streamer",
        "safetensors",
    }
)
"""Load formats that read weights from where the model's configuration is; vLLM and SGLang share
the names."""

Source = Checkpoint | str
"""Where an engine reads something from; or its name, where the user's word is all there is."""


def source_of(
    model: str, revision: str | None, *, hub_cache: Path, load_format: str, cache: CacheConfig
) -> Source:
    """Return where the weights of `model` come from, as far as their content is to decide.

    Where the user names the weights, files that no engine reads, or that he says need not be read,
    decide nothing; a model without any file on this machine is then its name.
    """
    if cache.weight_version and find_checkpoint(model, revision, hub_cache=hub_cache) is None:
        return f"named:{model}"
    reads_weights = load_format in FROM_THE_CHECKPOINT and not cache.trust_weight_version
    return Checkpoint(
        model=model,
        revision=revision,
        hub_cache=hub_cache,
        load_format=load_format,
        weights=reads_weights,
    )


@dataclass(frozen=True, slots=True)
class Origin:
    """All that decides which bytes the blocks of a deployment hold.

    Raises:
        ConfigError: A setting has no form that could be compared.
    """

    sources: Mapping[str, Source]
    """By what the engine does with it, such as "model"."""

    describe: Callable[[Mapping[str, str]], Namespace]
    """Makes the namespace from the identity of each source."""

    def __post_init__(self) -> None:
        assert self.blank, "made once now, so that it refuses while the engine starts"

    @property
    def blank(self) -> Namespace:
        """The namespace but for what is in files: of no block."""
        return self.describe(dict.fromkeys(self.sources, ""))

    def find(self, cache: CacheConfig, then: Callable[[Namespace], None]) -> Identification:
        """Find the namespace, and call `then` with it: at once, or from a thread, or never.

        Args:
            cache: Has an SSD tier, which remembers what files hold.
            then: Called once at most; see `Identification`.
        """
        named = {role: name for role, name in self.sources.items() if isinstance(name, str)}
        read = {role: place for role, place in self.sources.items() if not isinstance(place, str)}
        return Identification(
            read,
            cache.ssd_directories,
            engine_start_s(),
            lambda found: then(self.describe(named | dict(found))),
        )
