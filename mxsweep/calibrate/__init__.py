"""Calibrate: work out, on texts that are not evaluated, what makes quantizing cost a model less."""
