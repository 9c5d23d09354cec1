"""What a forward of the U-Net asks of a GPU, counted from the module tree on tensors without memory."""
