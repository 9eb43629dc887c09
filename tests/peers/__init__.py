"""Other tools that quantize, and what mxsweep's formats have to be to compute what they do."""
