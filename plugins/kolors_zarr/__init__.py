"""Pictures and captions in zarr v3 stores."""
