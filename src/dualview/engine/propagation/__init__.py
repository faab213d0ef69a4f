"""Relevance propagation on operations: rules behind every torch call of a forward pass."""
