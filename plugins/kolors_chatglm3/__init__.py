"""ChatGLM3-6B-Base as the text encoder (2.1.1)."""
