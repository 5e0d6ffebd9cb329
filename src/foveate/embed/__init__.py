"""Features of pictures, written into one file for those who go on with them elsewhere."""
