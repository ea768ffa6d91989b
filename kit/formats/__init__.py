"""Weights in other shapes: safetensors, GGUF, and from one to the other."""
