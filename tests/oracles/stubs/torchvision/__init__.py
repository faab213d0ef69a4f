"""Stands in for torchvision, which the peers import at load and these tests never use.

The real one would bring a second torch. What the peers name at load is here, and nothing else.
"""

from . import models

__all__ = ["models"]
__version__ = "0.0+stub"
