"""What the tests of storage below a host tier share lies beside them, in no package."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
