"""Define quantization in plain torch, which every other backend is checked against."""
