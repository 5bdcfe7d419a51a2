"""CLIP score: planted cosines, order, prompts as the unit, what the embedded pair tells apart."""

import math

import numpy as np
import pytest
import torch

from rectiflow.evaluation.clip import EmbeddedClip, load_embedded_clip
from rectiflow.evaluation.clip_score import clip_score, clip_score_of_features, cosines
from rectiflow.evaluation.features import Features
from rectiflow.shapeworld.captions import captions
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import sample_scene
from rectiflow.shapeworld.world import SMALL


def _features(rows: list[list[float]], backbone: str = "A") -> Features:
    return Features(vectors=torch.tensor(rows), backbone=backbone)


def _at_angles(*degrees: float) -> Features:
    """Vectors of several lengths at angles to (1, 0)."""
    return _features(
        [
            [(i + 1) * math.cos(math.radians(a)), (i + 1) * math.sin(math.radians(a))]
            for i, a in enumerate(degrees)
        ]
    )


@pytest.fixture(scope="module")
def embedded() -> EmbeddedClip:
    return load_embedded_clip()


def _captioned(count: int) -> tuple[np.ndarray, list[str]]:
    scenes = [sample_scene(SMALL, split="val", seed=0, index=i) for i in range(count)]
    texts = [captions(SMALL, scene, seed=0, index=i)["full"] for i, scene in enumerate(scenes)]
    return np.stack([render(SMALL, scene) for scene in scenes]), texts


def test_planted_cosines() -> None:
    images, texts = _at_angles(0, 60, 180), _features([[5.0, 0.0]] * 3)
    score = clip_score_of_features(images, texts, ["a", "b", "c"])
    assert score.cosine.mean == pytest.approx((1.0 + 0.5 - 1.0) / 3, abs=1e-6)
    assert score.cosine.low < score.cosine.mean < score.cosine.high
    assert (score.num_prompts, score.num_pictures, score.backbone) == (3, 3, "A")


def test_every_prompt_weighs_the_same() -> None:
    images, texts = _at_angles(0, 90, 90, 90), _features([[1.0, 0.0], [1.0, 0.0]])
    score = clip_score_of_features(images, texts, ["a", "b", "b", "b"])
    assert score.cosine.mean == pytest.approx(0.5, abs=1e-6)
    assert (score.num_prompts, score.num_pictures) == (2, 4)


def test_the_interval_covers_a_planted_mean() -> None:
    hits = 0
    for trial in range(100):
        rng = np.random.default_rng(trial)
        angles = np.degrees(np.arccos(rng.uniform(-0.2, 0.6, size=40)))
        prompts = [str(i) for i in range(40)]
        score = clip_score_of_features(
            _at_angles(*angles), _features([[1.0, 0.0]] * 40), prompts, seed=trial
        )
        hits += score.cosine.low <= 0.2 <= score.cosine.high
    assert 90 <= hits <= 99


def test_one_picture_has_a_wide_interval() -> None:
    cosine = clip_score_of_features(_at_angles(60), _features([[1.0, 0.0]]), ["a"]).cosine
    assert cosine.mean == pytest.approx(0.5, abs=1e-6)
    assert cosine.high - cosine.low > 0.5


def test_cosines_never_leave_their_range() -> None:
    x = torch.randn(500, 96, generator=torch.Generator().manual_seed(0)).half().float()
    assert cosines(x, x).max() <= 1.0
    assert cosines(x, -x).min() >= -1.0


def test_order_does_not_matter(embedded: EmbeddedClip) -> None:
    images, texts = _captioned(16)
    forth = clip_score(images, texts, embedded)
    back = clip_score(images[::-1].copy(), texts[::-1], embedded)
    assert back.cosine.mean == pytest.approx(forth.cosine.mean, abs=1e-5)


def test_own_captions_fit_better_than_others(embedded: EmbeddedClip) -> None:
    images, texts = _captioned(64)
    own = clip_score(images, texts, embedded).cosine
    others = clip_score(images, [*texts[7:], *texts[:7]], embedded).cosine
    assert own.low > others.high


@pytest.mark.parity
def test_equals_torchmetrics_formula(embedded: EmbeddedClip) -> None:
    """Its metric takes a processor and the network that goes with it; here both are stand-ins."""
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update

    images, texts = _captioned(12)
    image_features, text_features = embedded.embed_images(images), embedded.embed_texts(texts)

    class Processed(dict[str, torch.Tensor]):
        pass

    class Network:
        config = None

        def to(self, device: torch.device) -> "Network":
            return self

        def get_image_features(self, rows: torch.Tensor) -> torch.Tensor:
            return image_features.vectors[rows]

        def get_text_features(self, rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return text_features.vectors[rows]

    def process(**inputs: list[object]) -> dict[str, torch.Tensor]:
        rows = torch.arange(12)
        return {"pixel_values": rows, "input_ids": rows, "attention_mask": rows}

    pictures = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    scores, count = _clip_score_update(pictures, texts, Network(), process)
    ours = clip_score_of_features(image_features, text_features, texts)
    assert count == ours.num_pictures
    assert 100 * ours.cosine.mean == pytest.approx(float(scores.mean()), abs=1e-4)


def test_prints_what_it_depends_on() -> None:
    score = clip_score_of_features(_at_angles(0, 60), _features([[1.0, 0.0]] * 2), ["a", "b"])
    assert str(score).startswith("CLIP score 0.7500 [")
    assert str(score).endswith("(n = 2, A)")


def test_refuses_counts_that_do_not_fit(embedded: EmbeddedClip) -> None:
    texts = _features([[1.0, 0.0]])
    with pytest.raises(ValueError, match="2 pictures came with 1 prompts"):
        clip_score_of_features(_at_angles(0, 60), texts, ["a"])
    with pytest.raises(ValueError, match="of which 2 are distinct, and 1 text vectors"):
        clip_score_of_features(_at_angles(0, 60), texts, ["a", "b"])
    with pytest.raises(ValueError, match="do not compare"):
        clip_score_of_features(_at_angles(0), _features([[1.0, 0.0]], "B"), ["a"])
    with pytest.raises(ValueError, match="no picture to embed"):
        clip_score(np.zeros((0, 64, 64, 3), dtype=np.uint8), ["a"], embedded)
