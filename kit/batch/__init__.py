"""Many prompts from a file, their answers to another: nothing twice, nothing lost."""
