"""Evaluate a model on lm-eval's tasks."""
