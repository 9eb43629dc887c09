"""`python -m mxsweep.sensitivity`: the loss that each part of a model brings when it is quantized."""
