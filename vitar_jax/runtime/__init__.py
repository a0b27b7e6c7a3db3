"""What every other package may use: command line, config, crash-safe and remote files, processes, endpoint client."""
