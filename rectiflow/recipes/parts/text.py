"""Makes the embedded text part: three tiny encoders with tokenizers, and the image tower.

The CLIP towers learn beside the image tower, T5 by span corruption, all from both worlds' seen
training scenes. On one core about a quarter of an hour. Stored in bf16, scored as loaded again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from rectiflow.base.config import to_json
from rectiflow.base.files import atomic_directory
from rectiflow.base.seeds import derive_seed
from rectiflow.models.shipped.card import write_card
from rectiflow.models.text.conditioner import EncoderSize, TextConditioner, TextConditionerConfig
from rectiflow.models.text.loading import load_text_folder
from rectiflow.models.text.tokenizers import (
    NUM_SENTINELS,
    build_clip_tokenizer,
    build_t5_tokenizer,
)
from rectiflow.models.vision.image_tower import ImageTower, load_image_tower_folder
from rectiflow.recipes.parts.text_scores import score_image_tower, score_text_states
from rectiflow.shapeworld.world import FULL, SMALL
from rectiflow.training.environment import source_commit
from rectiflow.training.parts.captioned_scenes import CaptionedScenes, draw_scenes
from rectiflow.training.parts.contrastive import (
    ContrastiveTowers,
    ContrastiveTraining,
    train_contrastive,
)
from rectiflow.training.parts.span_corruption import (
    SpanTraining,
    TokenIds,
    masked_token_accuracy,
    train_span_corruption,
)

Log = Callable[[dict[str, float]], None]

WORLDS = (SMALL, FULL)
#: As released: padding also starts the decoder.
_T5_SPECIAL_IDS: dict[str, Any] = {
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


@dataclass(frozen=True, kw_only=True)
class TextPartRecipe:
    """Sizes and training of the embedded encoders; widths are (width, heads)."""

    seed: int = 0
    num_scenes: int = 40_000
    num_val_scenes: int = 4_096
    length: int = 16
    block_size: int = 16
    num_layers: int = 3
    clip_l: tuple[int, int] = (64, 2)
    clip_g: tuple[int, int] = (96, 3)
    image_tower: tuple[int, int] = (96, 3)
    image_size_px: int = 64
    image_patch_px: int = 8
    t5: tuple[int, int] = (192, 6)
    t5_feed_forward: int = 384
    contrastive: ContrastiveTraining = field(
        default_factory=lambda: ContrastiveTraining(max_steps=600)
    )
    spans: SpanTraining = field(default_factory=lambda: SpanTraining(max_steps=1000))


def make_text_part(recipe: TextPartRecipe, out: Path, on_log: Log) -> None:
    """Train the encoders and write the part to `out`, which must not exist.

    Raises:
        UserError: `out` is not empty or cannot be written.
    """
    commit = source_commit() or "unknown"
    last: dict[str, float] = {}

    def log(fields: dict[str, float]) -> None:
        last.update({k: v for k, v in fields.items() if k.startswith("loss")})
        on_log(fields)

    with atomic_directory(out) as folder:
        scenes = draw_scenes(WORLDS, split="train", seed=recipe.seed, count=recipe.num_scenes)
        val = draw_scenes(WORLDS, split="val", seed=recipe.seed, count=recipe.num_val_scenes)
        tokenizers = build_tokenizers(recipe, scenes)
        towers = build_towers(recipe, tokenizers)
        _train_towers(recipe, towers, tokenizers, scenes, log)
        t5, masked_accuracy = _train_t5(recipe, tokenizers["t5"], scenes, val, log)
        encoders = {**towers.text_towers, "t5": t5}
        conditioner = TextConditioner(_config(recipe), encoders, tokenizers)
        conditioner.to(torch.bfloat16).save(folder)
        ImageTower(towers.image_tower).to(torch.bfloat16).save(folder / "image_tower")  # pyright: ignore
        trained = {"last_losses": last, "t5_masked_token_accuracy": masked_accuracy}
        score_text_part(recipe, folder, scenes, val, commit=commit, trained=trained)


def score_text_part(
    recipe: TextPartRecipe,
    folder: Path,
    scenes: CaptionedScenes,
    val: CaptionedScenes,
    *,
    commit: str,
    trained: dict[str, Any],
) -> None:
    """Score the part in `folder` as it loads, and write its card; `trained` joins the scores."""
    conditioner = load_text_folder(folder)
    image_tower = load_image_tower_folder(folder / "image_tower")
    scores = score_text_states(conditioner, scenes, val)
    scores |= score_image_tower(image_tower, conditioner, val)
    write_card(
        folder,
        recipe=to_json(recipe),
        commit=commit,
        data={
            "worlds": [world.name for world in WORLDS],
            "split": "train",
            "seed": recipe.seed,
            "num_scenes": recipe.num_scenes,
            "held_out": False,
        },
        scores=trained | scores,
        fingerprints=conditioner.fingerprints(),
    )


def build_tokenizers(
    recipe: TextPartRecipe, scenes: CaptionedScenes
) -> dict[str, PreTrainedTokenizerFast]:
    """Tokenizers whose whole words are those of the scenes' captions."""
    texts = [text for both in scenes.captions for text in both]
    return {
        "clip_l": build_clip_tokenizer(texts, length=recipe.length, pad="eos"),
        "clip_g": build_clip_tokenizer(texts, length=recipe.length, pad="first"),
        "t5": build_t5_tokenizer(texts, length=recipe.length),
    }


def build_towers(
    recipe: TextPartRecipe, tokenizers: dict[str, PreTrainedTokenizerFast]
) -> ContrastiveTowers:
    """Untrained towers, initialised from the recipe's seed."""
    torch.manual_seed(derive_seed(recipe.seed, "towers"))
    width, num_heads = recipe.image_tower
    image_tower = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=recipe.num_layers,
            num_attention_heads=num_heads,
            image_size=recipe.image_size_px,
            patch_size=recipe.image_patch_px,
            projection_dim=recipe.clip_g[0],
        )
    )
    text_towers = {
        name: _text_tower(recipe, tokenizers[name], size, activation)
        for name, size, activation in (
            ("clip_l", recipe.clip_l, "quick_gelu"),
            ("clip_g", recipe.clip_g, "gelu"),
        )
    }
    return ContrastiveTowers(image_tower, text_towers, paired="clip_g")


def build_t5(
    recipe: TextPartRecipe, tokenizer: PreTrainedTokenizerFast
) -> T5ForConditionalGeneration:
    """An untrained encoder with the one-layer decoder that only training needs."""
    torch.manual_seed(derive_seed(recipe.seed, "t5"))
    width, num_heads = recipe.t5
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=width // num_heads,
            d_ff=recipe.t5_feed_forward,
            num_layers=recipe.num_layers,
            num_decoder_layers=1,
            num_heads=num_heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            **_T5_SPECIAL_IDS,
        )
    )


def _text_tower(
    recipe: TextPartRecipe,
    tokenizer: PreTrainedTokenizerFast,
    size: tuple[int, int],
    activation: str,
) -> CLIPTextModelWithProjection:
    width, num_heads = size
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=recipe.num_layers,
            num_attention_heads=num_heads,
            max_position_embeddings=recipe.length,
            projection_dim=width,
            hidden_act=activation,
            **_special_ids(tokenizer),
        )
    )


def _special_ids(tokenizer: Any) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def _config(recipe: TextPartRecipe) -> TextConditionerConfig:
    def clip(width: int) -> EncoderSize:
        return EncoderSize(length=recipe.length, width=width, pooled_width=width)

    return TextConditionerConfig(
        clip_l=clip(recipe.clip_l[0]),
        clip_g=clip(recipe.clip_g[0]),
        t5=EncoderSize(length=recipe.length, width=recipe.t5[0]),
        block_size=recipe.block_size,
    )


def _train_towers(
    recipe: TextPartRecipe,
    towers: ContrastiveTowers,
    tokenizers: dict[str, PreTrainedTokenizerFast],
    scenes: CaptionedScenes,
    on_log: Log,
) -> None:
    def tokenize(name: str, texts: list[str]) -> Tensor:
        tokens = tokenizers[name](
            texts,
            padding="max_length",
            max_length=recipe.length,
            truncation=True,
            return_tensors="pt",
        )
        return tokens["input_ids"]

    seed = derive_seed(recipe.seed, "contrastive")
    train_contrastive(towers, scenes, tokenize, recipe.contrastive, seed=seed, on_log=on_log)


def _train_t5(
    recipe: TextPartRecipe,
    tokenizer: PreTrainedTokenizerFast,
    scenes: CaptionedScenes,
    val: CaptionedScenes,
    on_log: Log,
) -> tuple[T5EncoderModel, float]:
    model = build_t5(recipe, tokenizer)
    vocabulary = tokenizer.get_vocab()
    sentinels = tuple(vocabulary[f"<extra_id_{i}>"] for i in range(NUM_SENTINELS))
    ids = TokenIds(pad=0, end=1, sentinels=sentinels)

    def tokens_of(chosen: CaptionedScenes) -> list[list[int]]:
        texts = [text for both in chosen.captions for text in both]
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    seed = derive_seed(recipe.seed, "span corruption")
    common: dict[str, Any] = {"length": recipe.length, "seed": seed}
    train_span_corruption(model, tokens_of(scenes), ids, recipe.spans, on_log=on_log, **common)
    accuracy = masked_token_accuracy(model, tokens_of(val), ids, recipe.spans, **common)
    encoder = T5EncoderModel(model.config)
    encoder.load_state_dict(
        {k: v for k, v in model.state_dict().items() if k.startswith(("shared.", "encoder."))}
    )
    return encoder, accuracy
