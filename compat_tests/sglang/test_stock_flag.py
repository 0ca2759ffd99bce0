"""Whoever types SGLang's flag for FlexKV's own package, and has only ours, is told what to type."""

import pytest
from sglang_process import EngineFailure


def test_the_flag_for_flexkvs_own_package_is_refused_with_ours(start_engine, model):
    with pytest.raises(EngineFailure, match="say instead --enable-hierarchical-cache") as failure:
        start_engine(model("oracle"), None, enable_flexkv=True)
    assert "connector.refused: --enable-flexkv needs the package flexkv" in str(failure.value)
