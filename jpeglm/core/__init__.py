"""What every part shares: errors, files, configs, the command line, devices, checkpoints."""
