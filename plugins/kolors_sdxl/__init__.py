"""The SDXL U-Net and VAE, as Kolors uses them (2)."""
