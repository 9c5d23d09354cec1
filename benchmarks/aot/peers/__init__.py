"""Kernels of other projects as they would launch them, beside ours at the same shapes.

Each module has `samples(dtype)`, as the ops have; the table of launches has no say in it.
"""
