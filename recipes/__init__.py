"""Published experiments, one YAML each."""
