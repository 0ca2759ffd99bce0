"""The engine double is that of the unit tests; the contract's data is found in the checkout."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "tests/flexkv_connectors/tensorrt_llm"), str(ROOT)]
