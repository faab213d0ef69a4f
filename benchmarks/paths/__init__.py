"""Path methods on a photograph beside their rivals: memory and CPU seconds."""
