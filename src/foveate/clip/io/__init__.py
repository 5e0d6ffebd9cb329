"""CLIPs in files: what opens, in which layout, and how it is written."""
