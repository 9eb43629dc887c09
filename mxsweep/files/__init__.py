"""Files: written whole or not at all, locked, identified by their content; checkpoints as files. No torch."""
