"""Utilities of all other packages: command line, config, crash-safe and remote files, processes, endpoint client."""
