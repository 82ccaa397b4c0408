"""One YAML per experiment."""
