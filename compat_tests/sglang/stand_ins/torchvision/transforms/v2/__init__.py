"""Nothing is transformed."""

from . import functional

__all__ = ["functional"]
