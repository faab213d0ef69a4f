"""The audit of every claim: each measured number in README.md and docs/ names its source. See `__main__`."""
