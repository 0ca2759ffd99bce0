"""Stands in for torchvision, of which no wheel fits torch for CPU: to be imported, not used."""

from . import io, transforms

__all__ = ["io", "transforms"]
__version__ = "0.28.0"
