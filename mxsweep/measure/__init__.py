"""What formats do to a model, measured without an evaluation: its weights, and the loss that each part brings."""
