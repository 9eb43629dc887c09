"""Push tokens through a model: batches, logits, losses."""
