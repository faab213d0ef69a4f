"""Arithmetic: tensors in, tensors out; no module, no file, no loop over a data set."""
