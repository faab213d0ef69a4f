"""The two families of networks that peers register rules for."""

from . import resnet, vgg

__all__ = ["resnet", "vgg"]
