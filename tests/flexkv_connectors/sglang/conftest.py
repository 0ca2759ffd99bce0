"""What the tests of the SGLang adapter share lies beside them, in no package."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
