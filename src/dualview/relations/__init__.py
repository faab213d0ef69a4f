"""Where the views meet: the relation between training samples, test samples and units."""

from dualview.relations.relation import Relation, relate
from dualview.relations.render import Maps, render

__all__ = ["Maps", "Relation", "relate", "render"]
