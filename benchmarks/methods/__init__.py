"""Every data method by every metric, with what it cost: `python -m benchmarks.methods`."""
