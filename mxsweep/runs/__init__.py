"""Do one run: load a model, quantize it, evaluate it, record the result."""
