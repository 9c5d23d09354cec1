"""What the bench of kernels on a GPU consists of."""
