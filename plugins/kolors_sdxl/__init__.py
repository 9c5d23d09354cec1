"""The SDXL U-Net and VAE, as Kolors uses them (2)."""

from kolors_kernel import ComponentConfig, hookimpl


@hookimpl
def kolors_components() -> list[type[ComponentConfig]]:
    """Return the U-Net, in torch and in OpenVINO, and the VAE."""
    from kolors_sdxl.config import SDXLVAE, SDXLUNet
    from kolors_sdxl.openvino_config import SDXLUNetOpenVINO

    return [SDXLUNet, SDXLUNetOpenVINO, SDXLVAE]
