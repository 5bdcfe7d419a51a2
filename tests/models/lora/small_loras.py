"""LoRA files as the usual tools write them, by hand, for small models."""

import re
from pathlib import Path

import torch
from models.published.small_checkpoints import SMALL, random_mmdit
from safetensors.torch import save_file

from rectiflow.models.lora import Lora, LowRank
from rectiflow.models.lora.homes import mmdit_matrices, text_matrices
from rectiflow.models.mmdit import MMDiT, MMDiTConfig

CONFIG = SMALL["sd3.5-medium"]
QKV = "joint_blocks.1.x_block.attn.qkv.weight"
PROJ = "joint_blocks.0.x_block.attn.proj.weight"
LAST_CONTEXT = "joint_blocks.2.context_block.adaLN_modulation.1.weight"
EMBEDDER = "x_embedder.proj.weight"


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kohya_tensors(
    config: MMDiTConfig = CONFIG, *, rank: int = 4, alpha: float = 2.0, prefix: str = "lora_unet_"
) -> dict[str, torch.Tensor]:
    """A pair for every matrix, as kohya's scripts name and shape them."""
    tensors = {}
    for i, (name, matrix) in enumerate(mmdit_matrices(config).items()):
        module = prefix + name.removesuffix(".weight").replace(".", "_")
        rows, *inner = matrix.shape
        ones = [1] * (len(inner) - 1)
        tensors[f"{module}.lora_down.weight"] = values(rank, *inner, seed=2 * i)
        tensors[f"{module}.lora_up.weight"] = values(rows, rank, *ones, seed=2 * i + 1)
        tensors[f"{module}.alpha"] = torch.tensor(alpha)
    return tensors


def by_hand(model: MMDiT, tensors: dict[str, torch.Tensor], weight: float) -> MMDiT:
    """A copy of the model with kohya's pairs added."""
    copy = random_mmdit(model.config)
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            if f"{module}.alpha" in tensors and name.endswith(".weight"):
                down = tensors[f"{module}.lora_down.weight"].flatten(1)
                up = tensors[f"{module}.lora_up.weight"].flatten(1)
                delta = (up @ down) * (tensors[f"{module}.alpha"] / down.shape[0])
                parameter += weight * delta.reshape(parameter.shape)
    return copy


def diffusers_tensors(
    config: MMDiTConfig = CONFIG, *, rank: int = 4, modules: str = ".*"
) -> dict[str, torch.Tensor]:
    """A pair for diffusers' modules, by module name and PEFT's ending."""
    tensors = {}
    for matrix in mmdit_matrices(config).values():
        names = matrix.entry.diffusers
        rows, *inner = matrix.shape
        for name in names:
            module = name.removesuffix(".weight")
            if re.fullmatch(modules, module):
                ones = [1] * (len(inner) - 1)
                seed = len(tensors)
                tensors[f"{module}.lora_A.weight"] = values(rank, *inner, seed=seed)
                tensors[f"{module}.lora_B.weight"] = values(
                    rows // len(names), rank, *ones, seed=seed + 1
                )
    return tensors


def write(path: Path, tensors, metadata=None) -> Path:
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
    return path


def pair(rows: int, columns: int, *, rank: int = 2, alpha: float = 2.0, first: int = 0, seed=0):
    return LowRank(
        down=values(rank, columns, seed=seed),
        up=values(rows, rank, seed=seed + 1),
        alpha=alpha,
        first_row=first,
    )


def small_lora(name: str = PROJ, *, seed: int = 0, alpha: float = 2.0) -> Lora:
    matrix = mmdit_matrices(CONFIG)[name]
    one = pair(matrix.num_rows, matrix.num_columns, seed=seed, alpha=alpha)
    return Lora(config=CONFIG, parts={"mmdit": {name: (one,)}})


def text_tensors(size, prefix: str, *, rank: int = 2) -> dict[str, torch.Tensor]:
    """kohya's pairs for every linear map of a text encoder."""
    tensors = {}
    for i, (name, matrix) in enumerate(text_matrices(size).items()):
        module = prefix + name.removesuffix(".weight").replace(".", "_")
        tensors[f"{module}.lora_down.weight"] = values(rank, matrix.num_columns, seed=i)
        tensors[f"{module}.lora_up.weight"] = values(matrix.num_rows, rank, seed=i + 1)
        tensors[f"{module}.alpha"] = torch.tensor(1.0)
    return tensors
