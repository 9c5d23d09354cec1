"""Choosing rows of the table of launches by the clock of a GPU, each proved right before it is timed."""
