"""Evaluation: tasks, the lm-eval model, and what comes out."""
