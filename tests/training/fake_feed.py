"""A few random latents and prompts in memory, with the interface of a store's feed."""

import torch
from torch import Tensor

from rectiflow.base import philox
from rectiflow.data.records import Batch
from rectiflow.models.mmdit import MMDiTConfig
from rectiflow.training.feed import Feed, StoreFacts
from rectiflow.training.optimizers import AdamW, Muon
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.schedule import Trapezoid

WIDTHS = {"clip_l": 8, "clip_g": 16, "t5": 32}
LENGTH = 2
FEATURE_DIM = 6


class FakeFeed(Feed):
    """`num` samples of 16 channels, 4x4; `poisoned_step` gets a NaN latent."""

    def __init__(
        self, *, num: int = 16, batch_size: int = 4, seed: int = 0, poisoned_step: int | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(num, *shape, generator=generator)

        self._mean, self._logvar = random(16, 4, 4), random(16, 4, 4) - 4
        self._text = {
            "clip_l.context": random(LENGTH, WIDTHS["clip_l"]),
            "clip_l.pooled": random(WIDTHS["clip_l"]),
            "clip_g.context": random(LENGTH, WIDTHS["clip_g"]),
            "clip_g.pooled": random(WIDTHS["clip_g"]),
            "t5.context": random(LENGTH, WIDTHS["t5"]),
        }
        self._features = random(FEATURE_DIM, 4, 4)
        self.batch_size, self._poisoned_step = batch_size, poisoned_step
        self.num = num
        self.validation = [self.rows(torch.arange(4), epoch=-1)]
        self.facts = StoreFacts(
            fingerprint=f"fake{seed}" * 4,
            autoencoder={"name": "shapeworld", "fingerprint": "a" * 64},
            text={"clip_l": "b" * 64, "clip_g": "c" * 64, "t5": "d" * 64},
            world="small",
            resolution_px=32,
            context_dim=32,
            pooled_dim=24,
            num_clip_tokens=LENGTH,
            latent_shapes=((16, 4, 4),),
            feature_dim=FEATURE_DIM,
        )

    def rows(self, indices: Tensor, *, epoch: int) -> Batch:
        return self._at(indices, torch.arange(len(indices)), epoch=epoch)

    def _at(self, indices: Tensor, positions: Tensor, *, epoch: int) -> Batch:
        return Batch(
            x0_mean=self._mean[indices],
            x0_logvar=self._logvar[indices],
            encoded_text={name: column[indices] for name, column in self._text.items()},
            features=self._features[indices],
            keys=philox.keys_for(0, "fake", epoch, indices=indices),
            indices=indices,
            positions=positions,
        )

    def batch_at(self, step: int) -> Batch:
        position = step * self.batch_size + torch.arange(self.batch_size)
        batch = self._at(position % self.num, position, epoch=int(position[0]) // self.num)
        if step + 1 == self._poisoned_step:
            batch.x0_mean[0, 0, 0, 0] = float("nan")
        return batch


def tiny_recipe(*, depth: int = 1, **changes: object) -> TrainRecipe:
    """The smallest model; with `depth` 2 its text tokens outlive the first block."""
    settings = {
        "name": "test",
        "backbone": MMDiTConfig(
            depth=depth, context_dim=32, pooled_dim=24, position_side=8, base_side=4
        ),
        "batch_size": 4,
        "max_steps": 12,
        "optimizer": Muon(rest=AdamW()),
        "schedule": Trapezoid(warmup_steps=2, decay_fraction=0.5),
        "num_validation": 4,
        "log_every": 3,
        "validate_every": 6,
        "checkpoint_every": 5,
    }
    return TrainRecipe(**(settings | changes))
