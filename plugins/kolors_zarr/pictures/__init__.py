"""Encoded pictures to pixels of the size of their bucket."""
