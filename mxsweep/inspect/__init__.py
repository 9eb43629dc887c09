"""`python -m mxsweep.inspect`: what formats do to a model's weights, without a run."""
