"""Which samples each step of an epoch trains on: pure functions of seed and epoch, without torch and without state."""
