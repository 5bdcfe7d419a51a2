"""The embedded benchmark: draw its prompts, read the pictures back, score what was read.

GenEval's six tasks and typography, on combinations seen in training and on held-out ones. Uses the
same verdicts for every model of a world, so that numbers compare; see `shapeworld.scoring`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from rectiflow.base.errors import UserError
from rectiflow.base.seeds import derive_seed
from rectiflow.evaluation.bootstrap import Interval, bootstrap_mean_of_strata
from rectiflow.evaluation.results import Evaluation, JudgedPicture, Score, SplitScore
from rectiflow.generation.folder import save_picture
from rectiflow.generation.metadata import picture_metadata
from rectiflow.generation.model import Model, with_weaker
from rectiflow.generation.settings import SamplingSettings
from rectiflow.generation.text_to_image import OnProgress, generate
from rectiflow.shapeworld.benchmark import BenchmarkPrompt, benchmark_prompts
from rectiflow.shapeworld.oracle import Oracle
from rectiflow.shapeworld.reading import Reading
from rectiflow.shapeworld.scoring import score
from rectiflow.shapeworld.world import World, world_by_name

BENCHMARK = "shapeworld"
PROMPT_FORM = "terse"


def evaluate(
    model: Model,
    *,
    per_task: int = 50,
    pictures_per_prompt: int = 1,
    seed: int = 0,
    settings: SamplingSettings | None = None,
    world: World | None = None,
    keep_in: Path | None = None,
    progress: OnProgress | None = None,
) -> Evaluation:
    """Score a model on `per_task` prompts of every task, seen and held out.

    By default the world is the model's own. With `keep_in` every picture is kept there as PNG, and
    its name stands in the result. Equal arguments give equal scores on one machine.

    Raises:
        UserError: the model was not trained on an embedded world, the picture's size does not fit
            the world, a number is below 1, or a picture cannot be written.
    """
    for name, number in (("per_task", per_task), ("pictures_per_prompt", pictures_per_prompt)):
        if number < 1:
            raise UserError(f"{name} is {number}; give a number of at least 1")
    world = world or _world_of(model)
    settings = settings or model.settings
    model = with_weaker(model, settings)
    _refuse_other_size(world, settings)
    started = time.perf_counter()
    prompts = [
        prompt
        for held_out in (False, True)
        for prompt in benchmark_prompts(world, per_task=per_task, held_out=held_out, seed=seed)
        for _ in range(pictures_per_prompt)
    ]
    seeds = picture_seeds(prompts, seed=seed)
    texts = [prompt.prompt for prompt in prompts]
    images = generate(model, texts, seeds, settings, progress=progress)
    judged = judge(world, prompts, seeds, images)
    if keep_in is not None:
        judged = [
            _keep(keep_in, i, picture, image, model, settings)
            for i, (picture, image) in enumerate(zip(judged, images))
        ]
    overall, tasks = summarize(judged, pictures_per_prompt=pictures_per_prompt, seed=seed)
    return Evaluation(
        benchmark=BENCHMARK,
        model=model.name,
        world=world.name,
        prompt_form=PROMPT_FORM,
        settings=settings,
        per_task=per_task,
        pictures_per_prompt=pictures_per_prompt,
        seed=seed,
        overall=overall,
        tasks=tasks,
        duration_s=round(time.perf_counter() - started, 2),
        pictures=tuple(judged),
        parts=model.parts,
        loras=model.loras,
        quantization=model.quantization and model.quantization.kind,
        is_compiled=model.is_compiled,
    )


def picture_seeds(prompts: Sequence[BenchmarkPrompt], *, seed: int) -> list[int]:
    """A seed for each picture: its place within its task and split, so that fewer prompts a task
    give the first of the same pictures.
    """
    counts: defaultdict[tuple[str, bool], int] = defaultdict(int)
    seeds: list[int] = []
    for prompt in prompts:
        place = counts[prompt.task, prompt.held_out]
        counts[prompt.task, prompt.held_out] += 1
        seeds.append(derive_seed(seed, BENCHMARK, prompt.task, int(prompt.held_out), place))
    return seeds


def judge(
    world: World,
    prompts: Sequence[BenchmarkPrompt],
    seeds: Sequence[int],
    images: UInt8[np.ndarray, "n h w 3"],
) -> list[JudgedPicture]:
    """Read every picture and compare it with its prompt."""
    oracle = Oracle(world)
    judged: list[JudgedPicture] = []
    for prompt, seed, image in zip(prompts, seeds, images):
        reading = oracle.read(image)
        verdict = score(world, reading, prompt.metadata)
        judged.append(
            JudgedPicture(
                task=prompt.task,
                is_held_out=prompt.held_out,
                prompt=prompt.prompt,
                seed=seed,
                is_correct=verdict.correct,
                is_strict=verdict.strict,
                graded=round(verdict.graded, 4),
                reason=verdict.reason,
                read=describe_reading(reading),
                file=None,
            )
        )
    return judged


def summarize(
    judged: Sequence[JudgedPicture], *, pictures_per_prompt: int = 1, seed: int = 0
) -> tuple[SplitScore, dict[str, SplitScore]]:
    """Overall and per-task scores; overall is the unweighted mean over the split's tasks.

    A task whose prompts have more than `pictures_per_prompt` pictures has no others: intervals are
    over its pictures then, else over its prompts.
    """
    score_of = partial(_score, pictures_per_prompt=pictures_per_prompt, seed=seed)
    by_task: dict[str, dict[bool, list[JudgedPicture]]] = {}
    for picture in judged:
        splits = by_task.setdefault(picture.task, {False: [], True: []})
        splits[picture.is_held_out].append(picture)
    tasks = {
        task: SplitScore(
            seen=score_of({task: splits[False]}),
            unseen=score_of({task: splits[True]}) if splits[True] else None,
        )
        for task, splits in by_task.items()
    }
    unseen = {task: splits[True] for task, splits in by_task.items() if splits[True]}
    overall = SplitScore(
        seen=score_of({task: splits[False] for task, splits in by_task.items()}),
        unseen=score_of(unseen) if unseen else None,
    )
    return overall, tasks


def describe_reading(reading: Reading) -> str:
    """What the oracle read in words: "2 red circles, a blue square, the word "AC" in red"."""
    counts: defaultdict[tuple[str, str], int] = defaultdict(int)
    for found in reading.objects:
        counts[found.color, found.shape] += 1
    parts = [
        f"{count} {color} {_plural(shape)}" if count > 1 else f"a {color} {shape}"
        for (color, shape), count in counts.items()
    ]
    if reading.word is not None:
        parts.append(f'the word "{reading.word.text}" in {reading.word.color}')
    if reading.num_unknown:
        parts.append(f"{reading.num_unknown} unknown blob{'s' * (reading.num_unknown > 1)}")
    return ", ".join(parts)


def _score(
    by_task: Mapping[str, Sequence[JudgedPicture]], *, pictures_per_prompt: int, seed: int
) -> Score:
    prompts = {task: _by_prompt(pictures) for task, pictures in by_task.items()}
    exhausted = {t for t, groups in prompts.items() if max(map(len, groups)) > pictures_per_prompt}

    def interval(reading: Callable[[JudgedPicture], float]) -> Interval:
        values = {
            task: [[reading(picture) for picture in group] for group in groups]
            for task, groups in prompts.items()
        }
        return bootstrap_mean_of_strata(values, exhausted=exhausted, seed=seed)

    return Score(
        num_prompts=sum(map(len, prompts.values())),
        num_pictures=sum(map(len, by_task.values())),
        lenient=interval(lambda picture: float(picture.is_correct)),
        strict=interval(lambda picture: float(picture.is_strict)),
        graded=interval(lambda picture: picture.graded),
    )


def _by_prompt(pictures: Sequence[JudgedPicture]) -> list[list[JudgedPicture]]:
    """Pictures grouped by prompt: where a world has few prompts, they come more than once."""
    groups: dict[str, list[JudgedPicture]] = {}
    for picture in pictures:
        groups.setdefault(picture.prompt, []).append(picture)
    return list(groups.values())


def _keep(
    folder: Path,
    number: int,
    picture: JudgedPicture,
    image: UInt8[np.ndarray, "h w 3"],
    model: Model,
    settings: SamplingSettings,
) -> JudgedPicture:
    split = "unseen" if picture.is_held_out else "seen"
    name = f"{number:05d}-{picture.task}-{split}.png"
    about = picture_metadata(model, picture.prompt, picture.seed, settings)
    save_picture(folder / name, image, about)
    return replace(picture, file=name)


def _world_of(model: Model) -> World:
    if model.world is None:
        raise UserError(
            f"the model {model.name} was not trained on an embedded world, which this benchmark "
            "is about; name one (--world small) to try it all the same"
        )
    return world_by_name(model.world)


def _refuse_other_size(world: World, settings: SamplingSettings) -> None:
    height_px, width_px = settings.height_px, settings.width_px
    if height_px != width_px or height_px % world.canvas_px:
        raise UserError(
            f"pictures of {width_px}×{height_px} px cannot be read back: the world {world.name} "
            f"needs squares of {world.canvas_px} px or a multiple"
        )


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"
