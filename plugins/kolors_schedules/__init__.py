"""Noise schedules: the base, the released extension, the paper's exact one, and the rivals (2.2.2)."""
