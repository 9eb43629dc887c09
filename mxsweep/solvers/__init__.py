"""Weight methods: how the quantized values of a weight are chosen. One file a method, with a function ``solve``."""
