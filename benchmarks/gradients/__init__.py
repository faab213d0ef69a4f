"""The methods that compare gradients beside their rivals: CPU seconds."""
