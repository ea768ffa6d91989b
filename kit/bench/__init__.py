"""Measurements: how fast, how much memory, and what the numbers say."""
