"""Files written whole or not at all, folders that belong to one command, and the bytes of safetensors files."""
