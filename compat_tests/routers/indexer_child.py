"""`python -m dynamo.indexer`, but it ends with whoever has started it: when its input is closed."""

import os
import sys
import threading

from dynamo.indexer.main import main


def end_with_input() -> None:
    """Wait until the other side of the input is closed, or dead."""
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_input, daemon=True).start()
    sys.exit(main())
