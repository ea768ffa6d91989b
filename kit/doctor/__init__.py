"""Findings, and the next command."""
