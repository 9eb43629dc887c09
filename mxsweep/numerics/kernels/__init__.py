"""Launch CUDA kernels, which NVRTC compiles when a format is first used."""
