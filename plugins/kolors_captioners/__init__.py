"""Captions: describing pictures, and choosing between original and synthetic text (2.1.2)."""
