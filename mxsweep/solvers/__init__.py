"""Weight methods: how the codes of a quantized weight are chosen. One file a method."""
