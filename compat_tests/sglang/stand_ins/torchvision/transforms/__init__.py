"""Only what is imported at start."""

import enum

from torchvision._refusing import attribute_of

from . import functional, v2

__all__ = ["InterpolationMode", "functional", "v2"]


class InterpolationMode(enum.Enum):
    """The modes of the real one."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


__getattr__ = attribute_of(__name__)
