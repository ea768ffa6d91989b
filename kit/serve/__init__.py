"""A model that stays loaded: for a browser and programs (llama.cpp's server), in the terminal, and in a notebook."""
