"""Choose the quantized values of a weight: one file a weight method, with a function ``solve``."""
