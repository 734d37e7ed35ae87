"""Results in use: networks as files and folders that work elsewhere, and what they say of new images."""
