"""A training step as diffusers' examples write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from benchmarks.peers.unet import load_peer

if TYPE_CHECKING:
    from torch import Tensor

    Text = tuple[Tensor, Tensor, Tensor]  # rows, pooled vectors, sizes

RATE, DECAY, AVERAGE, CLIP = 1e-4, 0.01, 0.999, 1.0
BETAS = {"beta_start": 0.00085, "beta_end": 0.014}
STEPS = 1100


class Loop:
    """diffusers' net, schedule and average, torch's AdamW; `tuned` is what its users can have by settings alone."""

    def __init__(self, folder: str, *, tuned: bool = False, autocast: bool = False) -> None:
        import diffusers
        import torch
        from diffusers.training_utils import EMAModel

        self.net = load_peer(folder, "float32").train()
        if tuned:
            self.net = self.net.to(memory_format=torch.channels_last)
        self.tuned, self.autocast = tuned, autocast
        self.parameters = list(self.net.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, RATE, weight_decay=DECAY, fused=tuned or None)
        self.average = EMAModel(self.parameters, decay=AVERAGE, foreach=tuned)
        self.schedule: Any = cast(Any, diffusers).DDPMScheduler(
            num_train_timesteps=STEPS, beta_schedule="scaled_linear", **BETAS
        )

    def step(self, latents: Tensor, noise: Tensor, timesteps: Tensor, text: Text) -> float:
        """Train on one batch and return its loss."""
        import torch

        from kolors_weights.precision import exact_onednn, without_onednn

        # Our job, which calls this between two of its own steps, has chosen oneDNN for the process.
        with exact_onednn() if self.tuned else without_onednn():
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                loss = self.loss(latents, noise, timesteps, text)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.average.step(self.parameters)
        return float(loss)

    def loss(self, latents: Tensor, noise: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        """Return the mean squared error of the noise."""
        from torch.nn import functional as F

        rows, pooled, sizes = text
        noisy = self.schedule.add_noise(latents, noise, timesteps)
        found = self.net(
            noisy, timesteps, rows, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}, return_dict=False
        )[0]
        return F.mse_loss(found.float(), noise.float(), reduction="mean")
