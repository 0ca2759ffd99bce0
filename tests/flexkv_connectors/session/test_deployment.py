"""Options of engines with a host tier of ours."""

import pytest

from flexkv_connectors.session.deployment import require_cells
from flexkv_core.config import CacheConfig
from flexkv_core.errors import ConfigError


def test_cells_are_what_there_is():
    cache = CacheConfig()
    assert require_cells(cache, "vLLM") is cache


def test_pages_as_they_are_cannot_be_had():
    with pytest.raises(ConfigError, match="which vLLM does not offer: leave it out"):
        require_cells(CacheConfig(block_format="native"), "vLLM")
