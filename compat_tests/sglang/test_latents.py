"""Multi-head latent attention behind SGLang's real controller and host pools."""

from contextlib import ExitStack

import pytest
from controller_rig import TOKENS
from latent_rig import LatentRig
from sglang_process import flexkv

from flexkv_core.errors import ConfigError

PROMPT = list(range(8 * TOKENS))


@pytest.fixture
def start(model, tmp_path):
    """Start controllers on one directory, one after the other."""
    with ExitStack() as running:

        def start(layout, **place):
            running.close()
            rig = LatentRig(model("oracle"), layout, flexkv(tmp_path), **place)
            running.callback(rig.close)
            rig.fill(1)
            return rig

        yield start


@pytest.mark.parametrize("layout", ["layer_first", "page_first", "page_first_direct"])
def test_latents_are_read_by_a_new_process_with_another_layout(start, layout):
    rig = start("page_first_direct")
    rig.backup(PROMPT, range(8))
    expected = [rig.page_bytes(page) for page in range(8)]
    rig = start(layout)
    assert rig.prefetch(PROMPT, range(30, 22, -1)) == len(PROMPT)
    assert [rig.page_bytes(page) for page in range(30, 22, -1)] == expected


@pytest.mark.parametrize("rank", [0, 1])
def test_more_ranks_are_refused_since_only_one_would_write(start, rank):
    with pytest.raises(ConfigError, match="2 ranks share 1 KV heads, and only some would write"):
        start("page_first", rank=rank, num_ranks=2)
