"""The demo's report from what its folder holds: logs, sample pictures, evaluation, recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from rectiflow.base.config import load_config
from rectiflow.base.files import explain_os_error, read_json
from rectiflow.base.log import read_events
from rectiflow.evaluation.charts import format_seconds
from rectiflow.evaluation.report import Report, SampleRow, Stage, ValidationPoint
from rectiflow.evaluation.results import Evaluation, read_evaluation
from rectiflow.flow import Formulation
from rectiflow.training.recipe import TrainRecipe

MOMENTS = "moments"


def moment_folder(out: Path, step: int) -> Path:
    """Where the sample pictures of one moment of training lie."""
    return out / MOMENTS / f"step_{step:08d}"


def assemble_report(
    out: Path, stages: Mapping[str, float], describe: Callable[[str], str]
) -> Report:
    """Gather the page's content from a finished demo.

    Raises:
        UserError: a file is missing or damaged.
    """
    run = out / "run"
    recipe = load_config(run / "recipe.json", TrainRecipe)
    card = read_json(run / "model" / "model.json")
    session = read_json(run / "environment.json")["sessions"][-1]
    demo = read_json(out / "demo.json")
    evaluation = read_evaluation(out / "evaluation.json")
    logged = read_events(run / "metrics.jsonl", "train")
    training_s = float(card["provenance"]["training_s"])
    minutes = demo["minutes"]
    return Report(
        title=_title(training_s),
        lede=(
            f"A Stable Diffusion 3 in miniature, trained from random weights on "
            f"{demo['num_pictures']:,} captioned pictures on {_cores(session)}: "
            f"three text encoders, an autoencoder, a {recipe.backbone.title} and rectified flow. "
            "It drew every picture on this page; a program that reads pixels judged them."
        ),
        evaluation=evaluation,
        pictures=_read_pictures(out / "evaluation", evaluation),
        tiles=_tiles(recipe, evaluation, demo, training_s, session, run),
        stages=tuple(
            Stage(name=name, duration_s=duration_s, note=describe(name))
            for name, duration_s in stages.items()
        ),
        losses=tuple((event["step"], float(event["loss"])) for event in logged),
        validation=_validation(run),
        sample_prompts=recipe.sample_prompts,
        sample_rows=_sample_rows(out, recipe, training_s),
        facts=_facts(recipe, session),
        recipe=read_json(run / "recipe.json"),
        commands=(
            f"rectiflow demo --out {quote(str(out))} --minutes {minutes:g} --seed {demo['seed']}",
            f'rectiflow sample {quote(str(run))} "a red circle above a blue square" -n 4 --seed 1',
            f"rectiflow evaluate {quote(str(run))} --per-task {evaluation.per_task}",
        ),
        footer=(
            f"rectiflow {session['rectiflow']}, commit {(session['commit'] or 'unknown')[:12]}, "
            f"torch {session['packages']['torch']}, {session['processor']}, "
            f"{session['num_threads']} threads, {session['started_at']}"
        ),
    )


def _cores(session: Mapping[str, Any]) -> str:
    count = session["num_cores"]
    return "one processor core" if count == 1 else f"{count} processor cores"


def _title(training_s: float) -> str:
    minutes = round(training_s / 60)
    spent = f"{minutes} minute{'s' * (minutes > 1)}"
    if training_s < 60:
        spent = format_seconds(training_s)
    return f"{spent} of training, from captions to pictures"


def _tiles(
    recipe: TrainRecipe,
    evaluation: Evaluation,
    demo: Mapping[str, Any],
    training_s: float,
    session: Mapping[str, Any],
    run: Path,
) -> tuple[tuple[str, str], ...]:
    unseen = evaluation.overall.unseen
    tiles = [("overall, unseen combinations", f"{unseen.lenient.mean:.2f}")] if unseen else []
    tiles += [
        ("training", format_seconds(training_s)),
        ("steps", f"{recipe.max_steps:,}"),
        ("images a second", f"{recipe.max_steps * recipe.batch_size / max(training_s, 1e-9):,.0f}"),
        ("parameters", _count_parameters(run)),
        ("training pictures", f"{demo['num_pictures']:,}"),
    ]
    return tuple(tiles)


def _count_parameters(run: Path) -> str:
    from safetensors import safe_open

    with safe_open(run / "model" / "weights.safetensors", framework="pt") as file:
        count = 0
        for name in file.keys():  # noqa: SIM118 (not a dict)
            size = 1
            for side in file.get_slice(name).get_shape():
                size *= side
            count += size
    return f"{count / 1e6:.1f} M"


def _validation(run: Path) -> tuple[ValidationPoint, ...]:
    return tuple(
        ValidationPoint(
            step=event["step"],
            levels=tuple(map(float, event["ema"]["levels"])),
            raw=tuple(map(float, event["raw"]["per_level"])),
            ema=tuple(map(float, event["ema"]["per_level"])),
        )
        for event in read_events(run / "metrics.jsonl", "validation")
    )


def _sample_rows(out: Path, recipe: TrainRecipe, training_s: float) -> tuple[SampleRow, ...]:
    rows: list[SampleRow] = []
    for folder in sorted((out / MOMENTS).glob("step_*")):
        step = int(folder.name.removeprefix("step_"))
        files = sorted(folder.glob("*.png"))
        if step > recipe.max_steps or len(files) != len(recipe.sample_prompts):
            continue
        spent = format_seconds(training_s * step / recipe.max_steps)
        rows.append(SampleRow(label=f"{spent}, step {step:,}", pictures=_read_all(files)))
    return tuple(rows)


def _facts(recipe: TrainRecipe, session: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    backbone, optimizer = recipe.backbone, recipe.optimizer
    formulation: Formulation = recipe.formulation
    schedule = recipe.schedule
    return (
        ("recipe", recipe.name),
        ("seed", str(recipe.seed)),
        ("backbone", f"{backbone.title}, depth {backbone.depth}, width {backbone.hidden_dim}"),
        ("patch", f"{backbone.patch_size}×{backbone.patch_size} latents"),
        ("formulation", str(formulation)),
        ("optimizer", f"{type(optimizer).__name__}, {optimizer.learning_rate:g}"),
        (
            "schedule",
            f"{schedule.warmup_steps} steps up, last {schedule.decay_fraction:.0%} down",
        ),
        ("batch", f"{recipe.batch_size} pictures"),
        ("EMA decay", f"{recipe.ema.decay:g}"),
        ("encoder dropout", f"{recipe.encoder_dropout:g} each"),
        ("pooled dropout", f"{recipe.pooled_dropout:g}"),
        ("captions", _captions(recipe)),
        ("precision", recipe.precision),
        ("processor", f"{session['processor']}, {session['cpu_capability']}"),
    )


def _captions(recipe: TrainRecipe) -> str:
    if recipe.caption_mix is None:
        return "each sample's own, in equal shares"
    total = sum(recipe.caption_mix.values())
    return ", ".join(f"{weight / total:.0%} {name}" for name, weight in recipe.caption_mix.items())


def _read_pictures(folder: Path, evaluation: Evaluation) -> dict[str, bytes]:
    names = [picture.file for picture in evaluation.pictures if picture.file is not None]
    return dict(zip(names, _read_all([folder / name for name in names])))


def _read_all(files: list[Path]) -> tuple[bytes, ...]:
    contents: list[bytes] = []
    for file in files:
        try:
            contents.append(file.read_bytes())
        except OSError as error:
            raise explain_os_error(error, file, "read") from error
    return tuple(contents)
