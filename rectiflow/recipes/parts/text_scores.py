"""Scores of the embedded text part: what its states say, and whether they match pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rectiflow.models.text.conditioner import TextConditioner
from rectiflow.models.text.encoded import EncodedText
from rectiflow.models.vision.image_tower import ImageTower
from rectiflow.shapeworld.captions import captions
from rectiflow.shapeworld.scene import TASKS, sample_scene
from rectiflow.shapeworld.world import FULL, SMALL
from rectiflow.training.parts.captioned_scenes import CaptionedScenes
from rectiflow.training.parts.contrastive import draw_batch, truth_matrix
from rectiflow.training.parts.probe import caption_facts, fit_probe

NUM_PROBE_TRAIN = 30_000
NUM_PROBE_STEPS = 600
NUM_HELD_OUT_PER_TASK = 100
RETRIEVAL_BATCH = 256


def score_text_states(
    conditioner: TextConditioner, train: CaptionedScenes, val: CaptionedScenes
) -> dict[str, Any]:
    """Accuracy of linear probes for every kind of fact, on seen and on held-out combinations.

    Probes of three feature sets are fitted on training captions: CLIP's pooled and penultimate
    states, CLIP's pooled vectors alone, T5's states.
    """
    fitted = _distinct(train, NUM_PROBE_TRAIN)
    judged = {"seen": _distinct(val, len(val)), "held_out": _held_out_captions()}
    train_facts = [caption_facts(FULL, text) for text in fitted]
    train_features = _features(conditioner.encode(fitted))
    scores: dict[str, Any] = {}
    states = {k: (conditioner.encode(v), v) for k, v in judged.items()}
    for name, features in train_features.items():
        probe = fit_probe(features, train_facts, seed=0, max_steps=NUM_PROBE_STEPS)
        scores[f"probe_{name}"] = {
            split: probe.accuracy(
                _features(encoded)[name], [caption_facts(FULL, text) for text in texts]
            )
            for split, (encoded, texts) in states.items()
        }
    scores["std"] = {k: v.std().item() for k, v in states["seen"][0].columns().items()}
    return scores


def score_image_tower(
    tower: ImageTower, conditioner: TextConditioner, val: CaptionedScenes, num_batches: int = 8
) -> dict[str, Any]:
    """How often the nearest of 256 captions is true of an unseen picture, by kind of caption."""
    hits: dict[str, list[float]] = {"terse": [], "full": [], "mixed": []}
    for batch in range(num_batches):
        rows, mixed = draw_batch(val, RETRIEVAL_BATCH, seed=1, step=batch)
        images = tower.embed(val.images(rows))
        variants = {
            "terse": [val.captions[row][0] for row in rows],
            "full": [val.captions[row][1] for row in rows],
            "mixed": mixed,
        }
        for kind, texts in variants.items():
            text = F.normalize(conditioner.encode(texts).clip_g.pooled, dim=-1)
            nearest = (images @ text.T).argmax(dim=1, keepdim=True)
            is_true = truth_matrix(val, rows, texts)
            hits[kind] += is_true.gather(1, nearest).float().flatten().tolist()
    return {f"retrieval_at_{RETRIEVAL_BATCH}": {k: sum(v) / len(v) for k, v in hits.items()}}


def _features(encoded: EncodedText) -> dict[str, Tensor]:
    clip_l, clip_g = encoded.clip_l, encoded.clip_g
    pooled = torch.cat([clip_l.pooled, clip_g.pooled], dim=-1)
    penultimate = torch.cat([clip_l.context, clip_g.context], dim=-1).flatten(1)
    return {
        "clip": torch.cat([pooled, penultimate], dim=-1),
        "clip_pooled": pooled,
        "t5": encoded.t5.flatten(1),
    }


def _distinct(scenes: CaptionedScenes, count: int) -> list[str]:
    texts = dict.fromkeys(text for both in scenes.captions for text in both)
    return list(texts)[:count]


def _held_out_captions() -> list[str]:
    texts: dict[str, None] = {}
    for world in (SMALL, FULL):
        for task in TASKS:
            for index in range(NUM_HELD_OUT_PER_TASK):
                scene = sample_scene(
                    world, split="val", seed=0, index=index, task=task, held_out=True
                )
                texts |= dict.fromkeys(captions(world, scene, seed=0, index=index).values())
    return list(texts)
