"""Microscaling formats: what an element, a scale and a block are, and which tensor gets which. Plain data, no torch."""
