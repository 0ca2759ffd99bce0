"""What the tests of the TensorRT-LLM adapter share: lies beside them and in the contract's data.

An engine double needs torch (`make setup-engine`), and a lane to a simulated GPU Triton, too.
"""

import importlib.util
import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[3])]

collect_ignore = []
if importlib.util.find_spec("torch") is None:
    collect_ignore += [
        "test_bad_setups.py",
        "test_announcements.py",
        "test_connector.py",
        "test_contract.py",
        "test_failures.py",
        "test_pages.py",
        "test_shuffled_ranks.py",
        "test_ssd.py",
    ]
if importlib.util.find_spec("triton") is None:
    collect_ignore += ["test_gpu.py"]
