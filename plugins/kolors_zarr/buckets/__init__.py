"""Which sizes pictures are trained at, and which of them each picture gets (2.2.2)."""
