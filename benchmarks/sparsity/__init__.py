"""What sparsity costs: `python -m benchmarks.sparsity`."""
