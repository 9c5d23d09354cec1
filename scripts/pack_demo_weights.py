"""Store the demo's trained weights in half precision, as the package ships them.

    kolors run demo_train_autoencoder
    python scripts/pack_demo_weights.py runs/demo_train_autoencoder/weights plugins/kolors_demo/weights
    kolors run demo_precompute --out runs/latents32 --set data.buckets.side=32     # and so on, as in demo_train.yaml
    kolors run demo_train
    python scripts/pack_demo_weights.py runs/demo_train/weights plugins/kolors_demo/weights

Every part found in the run's folder replaces the shipped one.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from kolors_weights.reading import find_weights, open_state, read_config
from kolors_weights.writing import write_state

STEMS = {"text_encoder": "model", "autoencoder": "diffusion_pytorch_model", "backbone": "diffusion_pytorch_model"}


def pack(trained: Path, shipped: Path) -> None:
    """Write one part's config.json and its tensors in half precision into `shipped`, emptied first."""
    stem = STEMS[trained.name]
    state = {key: tensor.half() for key, tensor in open_state(find_weights(trained, stem)).items()}
    config = read_config(trained)
    shutil.rmtree(shipped, ignore_errors=True)
    write_state(shipped, state, config, stem=f"{stem}.fp16")
    print(f"{shipped}: {sum(tensor.numel() for tensor in state.values()) / 1e6:.2f} million parameters")


def main() -> None:
    """Pack every part of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the weights folder of a run")
    parser.add_argument("out", type=Path, help="where the package keeps its weights")
    options = parser.parse_args()
    for name in STEMS:
        if (options.run / name).is_dir():
            pack(options.run / name, options.out / name)


if __name__ == "__main__":
    main()
