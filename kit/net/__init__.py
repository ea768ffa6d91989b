"""One GET, and why it failed."""
