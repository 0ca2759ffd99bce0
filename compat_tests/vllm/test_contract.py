"""What our sources need of vLLM, held against the version that is installed here."""

from pathlib import Path

import vllm

from compat_tests.contract.check import judge
from compat_tests.contract.engines import ROOT, VLLM
from compat_tests.contract.library import Library
from compat_tests.contract.needs import needs_of


def test_the_connector_fits_the_sources_of_this_vllm():
    library = Library(Path(vllm.__file__).parents[1], ROOT)
    verdict = judge(VLLM, vllm.__version__, library, needs_of(VLLM))
    assert [finding for finding in verdict.findings if finding.is_broken] == []
