"""Handle files: written whole or not at all, locked, identified by content, kept in caches, checkpoints among them."""
