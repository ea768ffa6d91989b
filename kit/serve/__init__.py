"""A model that stays loaded: for a browser and programs (llama.cpp's server, a key, the page), and in the terminal."""
