"""Tokens through a model: batches, logits, losses."""
