"""A prompt goes in, tokens come out."""
