"""Averages kept on the way in a run's folder, and the model of any average made of them afterwards.

`averages/step_00001000/` holds each power-function average of the recipe's `ema.sigma_rels` at that
step, as `sigma_rel_0.05.safetensors`, and `step.json` with hashes. Beside the walk of a sample.
Source: arXiv 2312.02696, section 3.2 (post-hoc EMA) and appendix C.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from rectiflow.base.config import load_config
from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.base.files import (
    atomic_directory,
    read_json,
    refuse_used_folder,
    sha256_file,
    write_json,
)
from rectiflow.training.checkpoint import (
    averages_of,
    remove_whole,
    step_folders,
    step_name,
    step_of,
)
from rectiflow.training.export import read_description, write_model
from rectiflow.training.power_profile import PowerProfile, combine
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.tensor_files import write_tensors

_HEADER = "step.json"


@dataclass(frozen=True, kw_only=True)
class PostHocAverage:
    """A model made after the run: where it lies, and of what.

    `error` is how far the average is from the wanted one (`power_profile.Combination`).
    """

    model: Path
    step: int
    num_kept: int
    error: float


def keep_averages(
    run: Path, step: int, elapsed_s: float, averages: Mapping[float, Mapping[str, Tensor]]
) -> None:
    """Write the averages after `step` steps, whole or not at all.

    Raises:
        UserError: they cannot be written.
    """
    path = averages_of(run) / step_name(step)
    with atomic_directory(path) as folder:
        hashes: dict[str, str] = {}
        for sigma_rel, tensors in averages.items():
            file = folder / _file_of(sigma_rel)
            write_tensors(file, tensors)
            hashes[file.name] = sha256_file(file)
        write_json(folder / _HEADER, {"step": step, "elapsed_s": elapsed_s, "sha256": hashes})


def drop_averages(run: Path, *, after_step: int) -> None:
    """Remove those of steps that a continued run will do again."""
    for path in step_folders(averages_of(run)):
        if step_of(path) > after_step:
            remove_whole(path)


def average_run(run: Path | str, sigma_rel: float, out: Path | str) -> PostHocAverage:
    """Make the model of the average of length `sigma_rel` at the last step that was kept.

    It is written to `out` in the layout of the run's own model. It only reads the run, which may be
    going on.

    Raises:
        ConfigError: `sigma_rel` is out of range.
        UserError: the run has kept no averages, or has no model yet; `out` is in use, or cannot be
            written.
        CheckpointError: a file is damaged.
    """
    run, out, wanted = Path(run), Path(out), PowerProfile(sigma_rel)
    refuse_used_folder(out)
    recipe = load_config(run / "recipe.json", TrainRecipe)
    profiles = [PowerProfile(kept) for kept in recipe.ema.sigma_rels]
    steps = step_folders(averages_of(run))
    if not steps:
        raise UserError(
            f"{run} has kept no averages to make another one of; train a new run with "
            "--ema.sigma-rels 0.05 0.1 and --ema.snapshot-every N"
        )
    step = step_of(steps[0])
    kept = [(profile, step_of(path)) for path in steps for profile in profiles]
    files = [path / _file_of(profile.sigma_rel) for path in steps for profile in profiles]
    description = read_description(run)
    combination = combine(kept, wanted, step)
    with _opened(files) as sources:
        average = {
            name: _sum_of(sources, combination.coefficients.tolist(), name)
            for name in sources[0].keys()  # noqa: SIM118, it is no mapping
        }
    description["provenance"] |= {
        "step": step,
        "images_seen": step * recipe.batch_size,
        "training_s": round(read_json(steps[0] / _HEADER)["elapsed_s"], 1),
        "post_hoc_ema": {
            "sigma_rel": sigma_rel,
            "num_kept": len(files),
            "error": combination.error,
        },
    }
    write_model(out, run, average, recipe, description)
    return PostHocAverage(model=out, step=step, num_kept=len(files), error=combination.error)


@contextmanager
def _opened(files: Sequence[Path]) -> Generator[list[safe_open]]:
    """The files, after a check of their hashes; tensors are read when asked for."""
    with ExitStack() as stack:
        sources: list[safe_open] = []
        for file in files:
            expected = read_json(file.parent / _HEADER)["sha256"].get(file.name)
            if sha256_file(file) != expected:
                raise CheckpointError(
                    f"{file} is cut or damaged: its SHA-256 is not the one in {_HEADER}; remove "
                    f"the folder {file.parent} to do without it"
                )
            sources.append(stack.enter_context(safe_open(file, framework="pt")))
        yield sources


def _sum_of(sources: Sequence[safe_open], coefficients: Sequence[float], name: str) -> Tensor:
    """One tensor of the combination; summed in float64, so that no order of files shows."""
    first = sources[0].get_tensor(name)
    total = torch.zeros_like(first, dtype=torch.float64)
    for source, coefficient in zip(sources, coefficients, strict=True):
        total.add_(source.get_tensor(name).double(), alpha=coefficient)
    return total.to(first.dtype)


def _file_of(sigma_rel: float) -> str:
    return f"sigma_rel_{sigma_rel}.safetensors"
