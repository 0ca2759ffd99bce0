"""What tests of several folders share lies beside this."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
