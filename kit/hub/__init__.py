"""The Hugging Face Hub, as its client."""
