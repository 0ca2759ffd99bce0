"""What the tests of the SSD tier on the real engine share."""

import mmap
import re
from pathlib import Path
from typing import Any, NamedTuple

from engine_checks import NO_LOAD, PAGE_TOKENS
from engine_process import Ask, EngineProcess

from flexkv_core.block.keys import KeyChain
from flexkv_core.data.tiers.ssd.format import PAGE_BYTES as HEADER_BYTES

PATIENCE_S = 60.0


def connector_on(directory: Path, *more: Path, **options: Any) -> dict[str, Any]:
    """Return the connector of `ssd_connector`, with its SSD tier in `directory` and `more`."""
    return {
        "kv_connector": "SsdGlassConnector",
        "kv_connector_module_path": "ssd_connector",
        "kv_connector_extra_config": {
            "cpu_cache_gb": 0.25,
            "ssd_cache_gb": 2,
            "ssd_cache_dir": [str(folder) for folder in (directory, *more)],
            "promotion_timeout_s": PATIENCE_S,
        }
        | options,
    }


class Served(NamedTuple):
    """What an engine made of a prompt."""

    num_cached_tokens: int
    tokens: list[int]
    pages: list[str]
    """Digests of the pages of the prompt."""

    @property
    def loaded_pages(self) -> list[str]:
        """Those that were not computed."""
        return self.pages[: self.num_cached_tokens // PAGE_TOKENS]


def serve(engine: EngineProcess, prompt: list[int], **more: Any) -> Served:
    """Serve a prompt by itself, and leave nothing of it in the engine's own prefix cache."""
    (completion,) = engine.complete(Ask(prompt=prompt, **more))
    pages = engine.cached_pages(prompt)
    engine.forget()
    return Served(completion.num_cached_tokens, completion.tokens, pages)


def serve_cold(engine: EngineProcess, prompt: list[int]) -> Served:
    """Compute a prompt from its first token."""
    served = serve(engine, prompt, kv_transfer_params=NO_LOAD)
    assert served.num_cached_tokens == 0
    return served


def ready_keys(engine: EngineProcess, tier: str = "ssd") -> set[str]:
    """Return the blocks that a tier would be asked for."""
    return set(engine.connector("ready_keys", tier=tier))


def num_wrong(served: Served, truth: Served) -> int:
    """Return how many of the loaded pages are not what they should be."""
    pairs = zip(served.loaded_pages, truth.pages, strict=False)
    return sum(loaded != true for loaded, true in pairs)


def keys_of(prompt: list[int]) -> list[str]:
    """Return the keys of a prompt's full blocks, in hex."""
    chain = KeyChain(PAGE_TOKENS, None)
    chain.advance(prompt)
    return [key.hex() for key in chain.keys]


def flip_byte(directory: Path, key: str, column: str = "*") -> None:
    """Change one byte of a block on disk, in the columns of one name; no engine may be running."""
    header = re.compile(rb"FLEXKVC1.{32}" + re.escape(bytes.fromhex(key)), re.DOTALL)
    num_flipped = 0
    for path in directory.glob(f"*/{column}/*.slab"):
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as slab:
            for match in header.finditer(slab):
                slab[match.start() + HEADER_BYTES + 1000] ^= 0xFF
                num_flipped += 1
    assert num_flipped, f"{key} is not on disk"
