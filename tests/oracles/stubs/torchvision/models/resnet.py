"""Residual blocks: only their names."""

from torch import nn


class BasicBlock(nn.Module):
    """Never built."""


class Bottleneck(nn.Module):
    """Never built."""
