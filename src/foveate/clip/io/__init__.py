"""Files of CLIPs: the formats that can be opened, and saving."""
