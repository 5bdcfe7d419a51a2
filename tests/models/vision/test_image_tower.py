import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.models.vision import ImageTower
from rectiflow.models.vision.image_tower import load_image_tower_folder


@pytest.fixture
def tower() -> ImageTower:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=20,
    )
    return ImageTower(CLIPVisionModelWithProjection(config))


def test_embeddings_are_unit_vectors(tower):
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    vectors = tower.embed(images)
    assert vectors.shape == (3, tower.width) == (3, 20)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    assert (vectors[0] @ vectors[1]) < 0.99999


def test_embeddings_are_projections_of_length_one(tower):
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    projected = tower.project(images)
    assert not torch.allclose(projected.norm(dim=-1), torch.ones(3))
    expected = projected / projected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(tower.embed(images), expected)


def test_activations_are_those_of_each_patch_after_each_layer(tower):
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    first, last = tower.activations(images)
    assert first.shape == last.shape == (2, 4, 24)
    changed = images.clone()
    changed[:, :, 8:, 8:] = 0.0
    difference = (tower.activations(changed)[0] - first).norm(dim=-1)
    assert (difference.argmax(dim=1) == 3).all()


@pytest.mark.parametrize("method", ["embed", "project", "activations"])
def test_another_side_is_refused(tower, method):
    with pytest.raises(ValueError, match=r"the image tower reads 16×16 px, got 16×32"):
        getattr(tower, method)(torch.zeros(1, 3, 16, 32))


def test_patch_features_are_the_last_layer_but_ones_in_the_patches_places(tower):
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    features = tower.patch_features(images)
    assert features.shape == (2, 24, 2, 2)
    first, _ = tower.activations(images)
    assert torch.equal(features[:, :, 1, 0], first[:, 2])
    larger = images.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    assert tower.patch_features(larger).shape == features.shape
    with pytest.raises(ValueError, match="the image tower reads 16×16 px"):
        tower.activations(larger)


def test_fingerprints_are_of_the_weights(tower, tmp_path):
    tower.save(tmp_path)
    assert load_image_tower_folder(tmp_path).fingerprint() == tower.fingerprint()
    next(tower.parameters()).add_(1e-3)
    assert load_image_tower_folder(tmp_path).fingerprint() != tower.fingerprint()


def test_save_and_load(tower, tmp_path):
    tower.save(tmp_path)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(load_image_tower_folder(tmp_path).embed(images), tower.embed(images))
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cannot load CLIPVisionModelWithProjection from"):
        load_image_tower_folder(tmp_path)
    with pytest.raises(UserError, match="config.json is missing"):
        load_image_tower_folder(tmp_path / "nowhere")
