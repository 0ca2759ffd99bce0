import pytest

from flexkv_connectors.versions import require_supported
from flexkv_core.errors import UnsupportedEngineError


@pytest.mark.parametrize("version", ["0.28.0", "0.32.0+cpu", "0.33.1.dev3+gabc"])
def test_versions_in_the_range_pass(version):
    require_supported("vllm", version)


@pytest.mark.parametrize("version", ["0.27.1", "0.34.0", "1.0", "dev"])
def test_others_are_refused_with_what_to_do(version):
    with pytest.raises(UnsupportedEngineError, match=r"0\.28 up to, but not including, 0\.34"):
        require_supported("vllm", version)
