"""What the tests of the TensorRT-LLM adapter share: lies beside them and in the contract's data."""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[3])]
