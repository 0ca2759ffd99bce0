"""Whether FlexKV's own package is installed: its users keep what they have."""

import sys
from importlib.util import find_spec

__all__ = ["PACKAGE", "is_installed"]

PACKAGE = "flexkv"


def is_installed() -> bool:
    """Tell whether the package can be imported, without importing it."""
    if PACKAGE in sys.modules:
        return True
    spec = find_spec(PACKAGE)
    # Any folder of that name, of blocks on SSD for instance, would be a package without an origin.
    return spec is not None and spec.origin is not None
