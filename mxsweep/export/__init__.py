"""Write models as packed checkpoints that other programs load, and read them back."""
