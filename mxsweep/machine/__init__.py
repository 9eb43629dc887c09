"""The machine that mxsweep runs on: GPUs, versions, seeds, memory."""
