"""The VGG network: only its name."""

from torch import nn


class VGG(nn.Module):
    """Never built."""
