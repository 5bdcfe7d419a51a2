"""Trains text towers beside one image tower by a symmetric contrastive loss.

Each text tower has its own loss and temperature against the one image tower, so that a tower left
out later never carried what another one lacks. Source: arXiv 2103.00020, section 2.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from rectiflow.base.seeds import numpy_generator
from rectiflow.training.parts.captioned_scenes import CaptionedScenes
from rectiflow.training.schedule import cosine_factor

MAX_LOG_SCALE = math.log(100.0)


@dataclass(frozen=True, kw_only=True)
class ContrastiveTraining:
    """How long and how fast; a batch is that many picture–caption pairs."""

    max_steps: int
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 0.05
    log_every: int = 20


class ContrastiveTowers(nn.Module):
    """An image tower, text towers by name, and what joins each pair: a head and a temperature.

    The image tower's own projection serves the tower named `paired`; for the others a linear head
    on the image tower's pooled state exists only during training.
    """

    def __init__(self, image_tower: Any, text_towers: Mapping[str, Any], *, paired: str) -> None:
        super().__init__()
        self.image_tower = image_tower
        self.text_towers = nn.ModuleDict(dict(text_towers))
        self.paired = paired
        self.heads = nn.ModuleDict(
            {
                name: nn.Linear(
                    image_tower.config.hidden_size, tower.config.projection_dim, bias=False
                )
                for name, tower in text_towers.items()
                if name != paired
            }
        )
        self.log_scales = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(math.log(1 / 0.07))) for name in text_towers}
        )

    def similarities(
        self, images: Float[Tensor, "b 3 h w"], token_ids: Mapping[str, Tensor]
    ) -> dict[str, Float[Tensor, "b b"]]:
        """Per text tower, cosine of picture i (row) and caption j (column)."""
        pooled = self.image_tower.vision_model(images).pooler_output
        found: dict[str, Tensor] = {}
        for name, tower in self.text_towers.items():
            head = self.image_tower.visual_projection if name == self.paired else self.heads[name]
            text = tower(token_ids[name]).text_embeds
            found[name] = F.normalize(head(pooled), dim=-1) @ F.normalize(text, dim=-1).T
        return found


def contrastive_loss(
    similarity: Float[Tensor, "b b"], log_scale: Float[Tensor, ""], is_true: Bool[Tensor, "b b"]
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy of picture i against caption i.

    Args:
        similarity: cosines, pictures by captions.
        log_scale: logarithm of the inverse temperature.
        is_true: whether caption j holds for picture i; such pairs off the diagonal are left out
            of the sums, since they are not wrong answers.
    """
    logits = similarity * log_scale.clamp(max=MAX_LOG_SCALE).exp()
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(is_true & ~own, -torch.inf)
    labels = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))


def truth_matrix(scenes: CaptionedScenes, rows: np.ndarray, texts: list[str]) -> Tensor:
    """is_true[i, j]: text j holds for scene rows[i]."""
    return torch.tensor([[text in scenes.truths[row] for text in texts] for row in rows])


def train_contrastive(
    towers: ContrastiveTowers,
    scenes: CaptionedScenes,
    tokenize: Callable[[str, list[str]], Tensor],
    training: ContrastiveTraining,
    *,
    seed: int,
    on_log: Callable[[dict[str, float]], None],
) -> None:
    """Optimise all towers in place with AdamW; order and caption choice depend on `seed` alone.

    Args:
        towers: what is trained.
        scenes: pictures with their captions; each draw takes the terse or the full one.
        tokenize: (tower name, texts) → token ids.
        training: length and speed.
        seed: of the order and of the choice of captions.
        on_log: called now and then with step, loss per tower and learning rate.
    """
    decayed = [p for p in towers.parameters() if p.ndim >= 2]
    rest = [p for p in towers.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": training.weight_decay}, {"params": rest}],
        lr=training.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    towers.train()
    for step in range(training.max_steps):
        rate = training.learning_rate * cosine_factor(
            step, training.max_steps, warmup_steps=training.warmup_steps
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows, texts = draw_batch(scenes, training.batch_size, seed=seed, step=step)
        ids = {name: tokenize(name, texts) for name in towers.text_towers}
        similarities = towers.similarities(scenes.images(rows), ids)
        is_true = truth_matrix(scenes, rows, texts)
        losses = {
            name: contrastive_loss(similarity, towers.log_scales[name], is_true)
            for name, similarity in similarities.items()
        }
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        optimizer.step()
        if step % training.log_every == 0 or step == training.max_steps - 1:
            shown = {f"loss_{name}": float(loss.detach()) for name, loss in losses.items()}
            on_log({"step": step, **shown, "learning_rate": rate})
    towers.eval()


def draw_batch(
    scenes: CaptionedScenes, batch_size: int, *, seed: int, step: int
) -> tuple[np.ndarray, list[str]]:
    """Rows of distinct scenes and one caption for each; a pure function of seed and step."""
    rng = numpy_generator(seed, "contrastive batch", step)
    rows = rng.choice(len(scenes), size=batch_size, replace=False)
    variants = rng.integers(2, size=batch_size)
    return rows, [
        scenes.captions[row][variant] for row, variant in zip(rows, variants, strict=True)
    ]
