"""Train a model whose linear layers have formats in their products."""
