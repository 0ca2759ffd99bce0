"""Nothing is transformed."""

from torchvision._refusing import attribute_of

__getattr__ = attribute_of(__name__)
