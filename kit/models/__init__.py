"""Which models there are, and whether one is whole."""
