"""Measure what formats do to a model, without an evaluation: errors of weights, and the loss of each part."""
