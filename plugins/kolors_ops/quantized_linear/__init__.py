"""A linear layer whose weight is integers of 8 or 4 bits, in the form of `kolors_weights.quantizing`."""
