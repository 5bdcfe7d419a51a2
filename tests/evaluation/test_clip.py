"""Both makers of CLIP features: rows stand alone, sizes are met, transformers agrees."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.data.records import images_from_pixels
from rectiflow.evaluation import clip
from rectiflow.evaluation.clip import (
    ClipEmbedder,
    EmbeddedClip,
    PretrainedClip,
    load_clip_folder,
    load_embedded_clip,
)
from rectiflow.models.shipped import load_conditioner, load_image_tower
from rectiflow.models.text.tokenizers import build_clip_tokenizer

LENGTH = 12
TEXTS = ["a red circle", "three blue squares", "a red circle above a green star", ""]


def _noise(num: int, height_px: int, width_px: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, size=(num, height_px, width_px, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP model as transformers saves it."""
    tokenizer = build_clip_tokenizer(TEXTS, length=LENGTH, pad="eos")
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
    text = CLIPTextConfig(
        **sizes,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(**sizes, num_attention_heads=2, image_size=32, patch_size=8)
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=20
    )
    folder = tmp_path_factory.mktemp("clip") / "random-clip"
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pretrained(folder: Path) -> PretrainedClip:
    return load_clip_folder(folder)


@pytest.fixture(scope="module")
def embedded() -> EmbeddedClip:
    return load_embedded_clip()


@pytest.fixture(params=["embedded", "pretrained"])
def embedder(request: pytest.FixtureRequest) -> ClipEmbedder:
    return request.getfixturevalue(request.param)


def test_a_row_depends_on_its_own_picture(
    embedder: ClipEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _noise(7, 64, 64)
    order = np.array([3, 0, 6, 1, 2, 5, 4])
    together = embedder.embed_images(images)
    monkeypatch.setattr(clip, "BATCH_SIZE", 3)
    apart = embedder.embed_images(images[order])
    torch.testing.assert_close(apart.vectors, together.vectors[order], rtol=1e-4, atol=1e-5)
    assert apart.backbone == together.backbone == embedder.backbone


def test_a_row_depends_on_its_own_text(
    embedder: ClipEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = embedder.embed_texts(TEXTS)
    monkeypatch.setattr(clip, "BATCH_SIZE", 3)
    apart = embedder.embed_texts(TEXTS[::-1])
    torch.testing.assert_close(apart.vectors.flip(0), together.vectors, rtol=1e-4, atol=1e-5)


def test_pictures_and_texts_share_a_space(embedder: ClipEmbedder) -> None:
    images, texts = embedder.embed_images(_noise(2, 64, 64)), embedder.embed_texts(TEXTS)
    assert images.vectors.shape[1] == texts.vectors.shape[1]
    assert images.backbone == texts.backbone


def test_enlarged_pictures_look_the_same(embedder: ClipEmbedder) -> None:
    """Antialiased scaling undoes an enlargement; without antialiasing it would not."""
    flat = np.kron(_noise(3, 8, 8), np.ones((1, 8, 8, 1), dtype=np.uint8))
    large = np.kron(flat, np.ones((1, 4, 4, 1), dtype=np.uint8))
    one, other = embedder.embed_images(flat).vectors, embedder.embed_images(large).vectors
    assert F.cosine_similarity(one, other).min() > 0.99


def test_the_middle_square_is_read(embedder: ClipEmbedder) -> None:
    wide = _noise(2, 64, 96)
    middle = np.ascontiguousarray(wide[:, :, 16:80])
    assert torch.equal(embedder.embed_images(wide).vectors, embedder.embed_images(middle).vectors)


def test_nothing_to_embed_is_refused(embedder: ClipEmbedder) -> None:
    with pytest.raises(ValueError, match="no picture to embed; give at least one"):
        embedder.embed_images(np.zeros((0, 64, 64, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"no (prompt to encode|text to embed)"):
        embedder.embed_texts([])
    with pytest.raises(TypeError, match="are a list of strings, got"):
        embedder.embed_texts("a red circle")


def test_the_embedded_pair_gives_the_towers_own_vectors(embedded: EmbeddedClip) -> None:
    pictures = _noise(3, 64, 64)
    expected = load_image_tower().embed(images_from_pixels(list(pictures)))
    actual = F.normalize(embedded.embed_images(pictures).vectors, dim=-1)
    torch.testing.assert_close(actual, expected)
    pooled = load_conditioner().encode(TEXTS).clip_g.pooled
    torch.testing.assert_close(embedded.embed_texts(TEXTS).vectors, pooled)


def test_the_embedded_pair_needs_clip_g() -> None:
    with pytest.raises(ValueError, match="the conditioner has no clip_g"):
        EmbeddedClip(load_image_tower(), load_conditioner(["clip_l"]))


@pytest.mark.parity
def test_pictures_equal_transformers(folder: Path, pretrained: PretrainedClip) -> None:
    pictures = _noise(5, 48, 48)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        pixels = processor(list(pictures), return_tensors="pt")["pixel_values"]
        expected = model.get_image_features(pixels).pooler_output
    actual = pretrained.embed_images(pictures).vectors
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parity
def test_texts_equal_transformers(folder: Path, pretrained: PretrainedClip) -> None:
    model = CLIPModel.from_pretrained(folder).eval()
    for i, text in enumerate(TEXTS):
        tokens = pretrained.tokenizer([text], return_tensors="pt")
        with torch.no_grad():
            expected = model.get_text_features(
                tokens["input_ids"], tokens["attention_mask"]
            ).pooler_output
        actual = pretrained.embed_texts(TEXTS).vectors[i : i + 1]
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_long_texts_are_cut(pretrained: PretrainedClip) -> None:
    start = " ".join(["red"] * LENGTH)
    one, other = pretrained.embed_texts([start, f"{start} circle"]).vectors
    assert torch.equal(one, other)


def test_the_backbone_names_the_weights(folder: Path, pretrained: PretrainedClip) -> None:
    assert pretrained.backbone.startswith("random-clip @")
    assert load_clip_folder(folder).backbone == pretrained.backbone
    model = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1e-3
    other = PretrainedClip(model, pretrained.tokenizer, name="random-clip")
    assert other.backbone != pretrained.backbone


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_the_folders_own_mean_and_std_are_used(folder: Path, tmp_path: Path, file: str) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    pictures = _noise(2, 32, 32)

    def embed(mean: list[float], std: list[float]) -> torch.Tensor:
        stated = {"image_mean": mean, "image_std": std}
        is_nested = file == "processor_config.json"
        written = {"image_processor": stated} if is_nested else stated
        (copy / file).write_text(json.dumps(written))
        return load_clip_folder(copy).embed_images(pictures).vectors

    default = load_clip_folder(folder).embed_images(pictures).vectors
    assert torch.equal(embed(list(OPENAI_CLIP_MEAN), list(OPENAI_CLIP_STD)), default)
    assert not torch.allclose(embed([0.5] * 3, [0.5] * 3), default)


@pytest.mark.parametrize(
    "written",
    [
        "[]",
        '{"image_processor": []}',
        '{"image_mean": [0.5, 0.5, 0.5]}',
        '{"image_mean": [0.5, 0.5], "image_std": [0.5, 0.5]}',
        '{"image_mean": [0.5, 0.5, "x"], "image_std": [1, 1, 1]}',
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 0]}',
    ],
)
def test_an_image_processor_that_says_no_colors(folder: Path, tmp_path: Path, written: str) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "preprocessor_config.json").write_text(written)
    with pytest.raises(
        CheckpointError, match=r"preprocessor_config\.json (holds no|has image_mean)"
    ):
        load_clip_folder(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match=r"preprocessor_config\.json is not valid JSON"):
        load_clip_folder(tmp_path)


def test_folders_that_do_not_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.json is missing"):
        load_clip_folder(tmp_path)
    for path in folder.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cannot load CLIPModel from"):
        load_clip_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer_config.json is missing"):
        load_clip_folder(tmp_path)
