"""The contract, the registry, one adapter a file."""
