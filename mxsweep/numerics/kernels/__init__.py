"""CUDA kernels, compiled by NVRTC when a format is first used, and the Python that launches them."""
