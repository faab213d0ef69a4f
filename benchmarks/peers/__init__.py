"""Other libraries by the same metrics: same network, same data, one run."""
