"""Kernel tests need torch and triton (`make setup-engine`); without a GPU they are interpreted."""

import importlib.util
import os
import sys
from pathlib import Path

if importlib.util.find_spec("torch") is None or importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import torch

    sys.path.append(str(Path(__file__).parent))
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
