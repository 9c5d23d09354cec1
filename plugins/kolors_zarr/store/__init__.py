"""The store: its layout, where it lies, how it is written and how it is read."""
