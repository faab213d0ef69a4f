"""Where the views meet: the relation between training samples, test samples and units."""

from dualview.relations.relation import Relation, relate

__all__ = ["Relation", "relate"]
