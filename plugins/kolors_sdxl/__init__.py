"""The SDXL U-Net and VAE, as Kolors uses them (2)."""

from kolors_kernel import ComponentConfig, hookimpl


@hookimpl
def kolors_components() -> list[type[ComponentConfig]]:
    """Return the U-Net and the VAE."""
    from kolors_sdxl.config import SDXLVAE, SDXLUNet

    return [SDXLUNet, SDXLVAE]
