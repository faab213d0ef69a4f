"""The full run, read: `python -m benchmarks.full`."""
