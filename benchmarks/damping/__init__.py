"""How much the damping of a curvature matters, and which default serves: `python -m benchmarks.damping`."""
