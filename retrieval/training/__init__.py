"""Examples, trainer and configuration."""
