"""Which GPU a bench runs on, with its driver."""

from __future__ import annotations

import subprocess
from pathlib import Path
from shutil import which

AMD = Path("/sys/module/amdgpu/version")


def device_facts(*, dry: bool) -> dict[str, str]:
    """Return the GPU's name, its driver and what torch was built for, by name; of a dry run, that there is none."""
    import torch

    built = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    facts = {"torch": torch.__version__, "built_for": built if torch.version.cuda or torch.version.hip else "CPU"}
    if dry:
        return {"gpu": "none: dry", "driver": "none: dry", **facts}
    return {"gpu": torch.cuda.get_device_name(), "driver": _driver(), **facts}


def _driver() -> str:
    if which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        if said:
            return said.splitlines()[0]
    return AMD.read_text(encoding="utf-8").strip() if AMD.is_file() else "unknown"
