"""What the scripts share: nouns only. No click, no printing, no sys.exit, and no torch before it is needed."""
