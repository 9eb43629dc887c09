"""Look at the machine that mxsweep runs on: GPUs, memory that runs out, versions of packages, the source tree."""
