"""Ours beside diffusers with the same weights: a module for each part that is timed."""
