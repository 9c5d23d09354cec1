"""GEGLU: the first half of the last dimension times the exact (erf) GELU of the second half."""
