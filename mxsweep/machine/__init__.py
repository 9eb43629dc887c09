"""The machine that mxsweep runs on: GPUs, versions of packages, the commit of the source tree."""
