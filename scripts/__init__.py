"""The verbs: one small command each. Parse, call kit, print."""
