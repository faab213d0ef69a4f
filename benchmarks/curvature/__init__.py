"""The methods that invert a curvature of all parameters beside their rivals: CPU seconds."""
