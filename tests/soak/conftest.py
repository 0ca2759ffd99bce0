"""What the soak consists of lies beside it, in no package."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
