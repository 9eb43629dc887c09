"""Lay out the codes and scales of weights as each target's loader wants them, a file a target, and read them back."""
