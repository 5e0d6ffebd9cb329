"""From one file format to another: CLIPs, published heads, and label maps of semantic ground truth."""
