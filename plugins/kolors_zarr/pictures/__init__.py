"""Encoded pictures to pixels of the size of their bucket."""

from kolors_zarr.pictures.square import decode, fit

__all__ = ["decode", "fit"]
