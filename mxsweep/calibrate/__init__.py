"""What a run does before it is quantized: calibration, and what is worked out on it."""
