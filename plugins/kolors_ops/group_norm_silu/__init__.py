"""Group norm, followed by SiLU or not: silu((x - mean) / sqrt(var + eps) * weight + bias), mean and variance per group.

x [B, C, ...], weight and bias [C]; shape, dtype and memory format are those of x.
"""
