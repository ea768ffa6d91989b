"""From a base model to one's own: LoRA on one's own text, and what came of it."""
