"""Files written without partial content, folders claimed by one command, and the bytes of safetensors files."""
