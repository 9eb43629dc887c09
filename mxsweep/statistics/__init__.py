"""Compare examples that were asked twice: differences, intervals, p values."""
