"""The proof that this machine computes what the reference says."""
