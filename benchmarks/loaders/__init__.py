"""What the bench `loader` measures: one module per peer, each run in a process of its own by `measured.py`."""
