"""One GET, and why it failed; and where this machine is."""
