"""Linear probes: what a caption says, read from a text encoder's states by one linear map.

What a linear map cannot find in the conditioning, a diffusion model learns late or never.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from rectiflow.shapeworld.captions import parse_caption
from rectiflow.shapeworld.world import World

MAX_LETTERS = 5
ABSENT = "-"


def caption_facts(world: World, caption: str) -> dict[str, str]:
    """What a caption says, by the order in which it says it; `ABSENT` where it says nothing.

    Keys: count, relation, shape_1, color_1, place_1, shape_2, color_2, letter_1 … letter_5.

    Raises:
        UserError: the caption is not one of the world's sentences.
    """
    metadata = parse_caption(world, caption)
    clauses = list(metadata["include"])
    if metadata["tag"] == "position":
        clauses.reverse()  # the subject comes last there and first in the sentence
    word = metadata.get("word")
    facts = {
        "count": str(clauses[0]["count"]) if clauses else ABSENT,
        "relation": str(clauses[0].get("position", [ABSENT])[0]) if clauses else ABSENT,
        "place_1": clauses[0].get("places", [ABSENT])[0] if clauses else ABSENT,
    }
    if word is not None:
        facts["place_1"] = word.get("place", ABSENT)
    for i in range(2):
        clause = clauses[i] if i < len(clauses) else None
        facts[f"shape_{i + 1}"] = clause["class"] if clause else ABSENT
        facts[f"color_{i + 1}"] = clause.get("color", ABSENT) if clause else ABSENT
    if word is not None:
        facts["color_1"] = word.get("color", ABSENT)
    text = word["text"] if word is not None else ""
    for i in range(MAX_LETTERS):
        facts[f"letter_{i + 1}"] = text[i] if i < len(text) else ABSENT
    return facts


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """One linear map per fact, all trained together on standardised features."""

    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]
    heads: nn.ModuleDict
    answers: dict[str, list[str]]

    @torch.no_grad()
    def accuracy(
        self, features: Float[Tensor, "n d"], facts: Sequence[dict[str, str]]
    ) -> dict[str, float]:
        """Per kind of fact (the key before "_"), the part read correctly, in [0, 1].

        Captions that say nothing about a fact do not count for it.
        """
        scaled = (features - self.mean) / self.std
        hits: dict[str, list[float]] = {}
        for key, answers in self.answers.items():
            found = self.heads[key](scaled).argmax(dim=-1).tolist()
            kind = hits.setdefault(key.split("_")[0], [])
            kind += [
                float(answers[answer] == fact[key])
                for answer, fact in zip(found, facts, strict=True)
                if fact[key] != ABSENT
            ]
        return {kind: sum(found) / max(1, len(found)) for kind, found in hits.items()}


def fit_probe(
    features: Float[Tensor, "n d"],
    facts: Sequence[dict[str, str]],
    *,
    seed: int,
    max_steps: int,
    batch_size: int = 512,
) -> LinearProbe:
    """Fit by softmax regression with Adam."""
    mean, std = features.mean(dim=0), features.std(dim=0).clamp_min(1e-4)
    scaled = (features - mean) / std
    answers = {key: sorted({fact[key] for fact in facts}) for key in facts[0]}
    labels = {
        key: torch.tensor([options.index(fact[key]) for fact in facts])
        for key, options in answers.items()
    }
    generator = torch.Generator().manual_seed(seed)
    heads = nn.ModuleDict(
        {key: nn.Linear(features.shape[1], len(options)) for key, options in answers.items()}
    )
    for parameter in heads.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.Adam(heads.parameters(), lr=2e-3, weight_decay=1e-5)
    for _ in range(max_steps):
        rows = torch.randint(len(facts), (batch_size,), generator=generator)
        loss = torch.stack(
            [F.cross_entropy(heads[key](scaled[rows]), labels[key][rows]) for key in answers]
        ).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return LinearProbe(mean=mean, std=std, heads=heads, answers=answers)
