import math

import numpy as np
import pytest
import torch
from torch import nn

from rectiflow.shapeworld.world import FULL, SMALL
from rectiflow.training.parts.captioned_scenes import draw_scenes
from rectiflow.training.parts.contrastive import (
    ContrastiveTowers,
    ContrastiveTraining,
    contrastive_loss,
    draw_batch,
    train_contrastive,
    truth_matrix,
)


@pytest.fixture(scope="module")
def scenes():
    return draw_scenes((SMALL, FULL), split="train", seed=0, count=64)


class _Config:
    hidden_size = 8
    projection_dim = 6


class _Images(nn.Module):
    """Stands for an image tower: the mean colour of four quarters, linearly."""

    config = _Config()

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 8)
        self.visual_projection = nn.Linear(8, 6, bias=False)

    def vision_model(self, images):
        quarters = nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
        return type("Output", (), {"pooler_output": self.first(quarters * 10)})


class _Texts(nn.Module):
    config = _Config()

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(512, 6)

    def forward(self, ids):
        return type("Output", (), {"text_embeds": self.table(ids)})


def _tokenize(name: str, texts: list[str]) -> torch.Tensor:
    words = [[sum(map(ord, word)) % 512 for word in text.split()] for text in texts]
    return torch.tensor([(ids * 20)[:20] for ids in words])


def _towers() -> ContrastiveTowers:
    torch.manual_seed(0)
    return ContrastiveTowers(_Images(), {"clip_l": _Texts(), "clip_g": _Texts()}, paired="clip_g")


def test_loss_is_the_symmetric_cross_entropy():
    similarity = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor(math.log(3.0))
    loss = contrastive_loss(similarity, scale, torch.eye(5, dtype=torch.bool))
    rows = -torch.log_softmax(3 * similarity, dim=1).diagonal().mean()
    columns = -torch.log_softmax(3 * similarity, dim=0).diagonal().mean()
    torch.testing.assert_close(loss, (rows + columns) / 2)


def test_true_pairs_off_the_diagonal_neither_help_nor_harm():
    similarity = torch.zeros(3, 3, requires_grad=True)
    is_true = torch.eye(3, dtype=torch.bool)
    is_true[0, 1] = True
    contrastive_loss(similarity, torch.tensor(0.0), is_true).backward()
    assert similarity.grad is not None
    assert similarity.grad[0, 1] == 0
    assert similarity.grad[1, 0] != 0


def test_batches_are_a_pure_function_of_seed_and_step(scenes):
    rows, texts = draw_batch(scenes, 32, seed=1, step=5)
    again = draw_batch(scenes, 32, seed=1, step=5)
    assert np.array_equal(rows, again[0])
    assert texts == again[1]
    assert len(set(rows.tolist())) == 32
    assert texts != draw_batch(scenes, 32, seed=1, step=6)[1]
    variants = [scenes.captions[row].index(text) for row, text in zip(rows, texts, strict=True)]
    assert 4 < sum(variants) < 28


def test_truths_hold_for_their_own_picture(scenes):
    rows, texts = draw_batch(scenes, 64, seed=0, step=0)
    assert truth_matrix(scenes, rows, texts).diagonal().all()


def test_training_lowers_the_loss_and_repeats_bit_for_bit(scenes):
    training = ContrastiveTraining(
        max_steps=40, batch_size=32, learning_rate=1e-2, warmup_steps=4, log_every=1
    )
    runs = []
    for _ in range(2):
        towers, logs = _towers(), []
        train_contrastive(towers, scenes, _tokenize, training, seed=0, on_log=logs.append)
        runs.append((towers.state_dict(), logs))
    (weights, logs), (again, _) = runs
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    for tower in ("clip_l", "clip_g"):
        assert logs[-1][f"loss_{tower}"] < 0.8 * logs[0][f"loss_{tower}"]
    assert [log["step"] for log in logs] == list(range(40))
