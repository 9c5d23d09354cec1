"""Pictures with captions as people have them: image folders, tars, tables, listings. What an import reads; no torch."""

from kolors_zarr.collections.inputs import Collection, Entry, Input

__all__ = ["Collection", "Entry", "Input"]
