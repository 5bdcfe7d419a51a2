"""Sources, masks and LoRA files for the model of random parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from models.lora.small_loras import kohya_tensors, text_tensors, write
from PIL import Image
from tiny_model import tiny_backbone, tiny_conditioner

from rectiflow.models.lora import text_sizes


def source(height_px: int = 64, width_px: int = 64) -> np.ndarray:
    rng = np.random.default_rng(8)
    return rng.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)


def mask() -> np.ndarray:
    painted = np.zeros((64, 64), dtype=np.uint8)
    painted[16:48, 8:40] = 255
    return painted


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def lora_file(path: Path, *, text: str = "", rank: int = 4) -> Path:
    """kohya's names: all matrices of the MM-DiT; with `text`, of that encoder too."""
    tensors = kohya_tensors(tiny_backbone().config, rank=rank)
    if text:
        size = text_sizes(tiny_conditioner().encoders)[text]
        prefix = {"clip_l": "lora_te1_", "clip_g": "lora_te2_", "t5": "lora_te3_"}[text]
        tensors |= text_tensors(size, prefix)
    return write(path, tensors)
