"""A model for a browser and for programs: llama.cpp's server, its key, and the page."""
