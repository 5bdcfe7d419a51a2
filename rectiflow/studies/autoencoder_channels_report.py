"""What the channels' numbers say: table 3 of reconstructions, figure 10 of generation by depth.

Source: arXiv 2403.03206, table 3; figure 10 and its text: 16 channels need more capacity, and with
growing depth their samples become as good as those of 8 channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rectiflow.studies.comparison import Spread, paired_difference, spread_of
from rectiflow.studies.plots import Curve, plot_curves
from rectiflow.studies.study import Plot, Report, Row, Table

if TYPE_CHECKING:
    from rectiflow.studies.autoencoder_channels import AutoencoderChannels

RECONSTRUCTION, GENERATION = "reconstruction", "generation"
#: Name, format and whether less is better, by metric of reconstructions.
_METRICS: dict[str, tuple[str, str, bool]] = {
    "frechet": ("Fréchet", ".3f", True),
    "perceptual": ("perceptual", ".4f", True),
    "ssim": ("SSIM", ".3f", False),
    "psnr_db": ("PSNR", ".2f", False),
}
#: The paper's table 3: FID, perceptual similarity, SSIM, PSNR.
PAPER = {
    4: (2.41, 0.85, 0.75, 25.12),
    8: (1.56, 0.68, 0.79, 26.40),
    16: (1.06, 0.45, 0.86, 28.62),
}

#: A metric by depth, channels and seed.
Scores = Mapping[tuple[int, int], Mapping[int, float]]


def report_autoencoder_channels(study: AutoencoderChannels, rows: Sequence[Row]) -> Report:
    """Tables, figures and verdict."""
    reconstructed = [row for row in rows if row["kind"] == RECONSTRUCTION]
    drawn = [row for row in rows if row["kind"] == GENERATION and not row["diverged"]]
    diverged = [row["cell"] for row in rows if row["diverged"]]
    return Report(
        setting=(
            f"The shipped autoencoder's recipe with {study.stage_steps[0]} and "
            f"{study.stage_steps[1]} steps of 16 pictures of both worlds; only the channels of the "
            f"latents differ. On the latents of each, normalised alike, an MM-DiT of depth "
            f"{_listed(study.depths)} for {study.num_steps} steps of 16 pictures of the world "
            f"`{study.world}` ({study.num_pictures:,} pictures). Averaged weights, "
            f"{study.setting}, {study.per_task} prompts a task. Seeds of the models "
            f"{study.seeds}; one of each autoencoder."
        ),
        verdict=" ".join(
            [
                *(_better_with_channels(reconstructed, world) for world in _worlds(reconstructed)),
                "In the paper all four improve with every doubling.",
                _generation_verdict(study, _scores(drawn, "graded")),
                *([f"Diverged: {', '.join(diverged)}."] if diverged else []),
            ]
        ),
        tables=(
            *(_reconstruction_table(reconstructed, world) for world in _worlds(reconstructed)),
            *(_generation_table(study, drawn, metric) for metric in ("graded", "frechet")),
        ),
        plots=_figures(study, drawn),
    )


def _worlds(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["world"] for row in rows))


def _of_world(rows: Sequence[Row], world: str) -> list[Row]:
    """The rows of one world, channels ascending."""
    return sorted((row for row in rows if row["world"] == world), key=lambda row: row["channels"])


def _reconstruction_table(rows: Sequence[Row], world: str) -> Table:
    found = _of_world(rows, world)
    return Table(
        title=f"Reconstructions of the world `{world}` (table 3)",
        header=(
            "channels",
            *(title for title, _, _ in _METRICS.values()),
            "oracle",
            "oracle, words",
            "paper: FID, perceptual, SSIM, PSNR",
        ),
        rows=tuple(
            (
                str(row["channels"]),
                *(format(row[metric], form) for metric, (_, form, _) in _METRICS.items()),
                f"{row['oracle']:.2f} [{row['oracle_low']:.2f}, {row['oracle_high']:.2f}]",
                f"{row['oracle typography']:.2f}",
                ", ".join(map(str, PAPER.get(row["channels"], ()))),
            )
            for row in found
        ),
        note=(
            f"{found[0]['num_pictures']} unseen pictures of seen combinations; PSNR in dB. Oracle: "
            "the share of reconstructions from which it reads exactly the scene, the ceiling of "
            "any model of these latents. Fréchet and perceptual distance are measured in the "
            "embedded image tower: they compare within this table, not with the paper's."
        ),
    )


def _better_with_channels(rows: Sequence[Row], world: str) -> str:
    found = _of_world(rows, world)
    better: list[str] = []
    other: list[str] = []
    for metric, (title, _, is_less_better) in _METRICS.items():
        values = [-row[metric] if is_less_better else row[metric] for row in found]
        rises = all(after > before for before, after in itertools.pairwise(values))
        (better if rises else other).append(title)
    first, last = found[0], found[-1]
    return (
        f"Reconstructions of the world `{world}` from {first['channels']} to {last['channels']} "
        f"channels, one autoencoder each: better with every step by {_listed(better)}, not so by "
        f"{_listed(other)}; the "
        f"oracle reads {first['oracle']:.2f} and {last['oracle']:.2f} of them right."
    )


def _scores(rows: Sequence[Row], metric: str) -> Scores:
    found: dict[tuple[int, int], dict[int, float]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        found.setdefault((row["depth"], row["channels"]), {})[row["seed"]] = float(row[metric])
    return found


def _spread(scores: Scores, depth: int, channels: int) -> Spread | None:
    values = scores.get((depth, channels))
    return spread_of(list(values.values())) if values else None


def _generation_table(study: AutoencoderChannels, rows: Sequence[Row], metric: str) -> Table:
    scores = _scores(rows, metric)
    titles = {"graded": "graded score", "frechet": "Fréchet distance, less is better"}
    return Table(
        title=f"Generation by depth: {titles[metric]} (figure 10)",
        header=("depth", *(f"{channels} channels" for channels in study.channels)),
        rows=tuple(
            (str(depth), *(str(_spread(scores, depth, c) or "") for c in study.channels))
            for depth in study.depths
        ),
        note="Mean ± standard deviation over seeds.",
    )


def _generation_verdict(study: AutoencoderChannels, scores: Scores) -> str:
    fewer, more = sorted(study.channels)[-2:]
    shallow, deep = min(study.depths), max(study.depths)
    parts: list[str] = []
    for depth in (shallow, deep):
        spreads = {c: _spread(scores, depth, c) for c in study.channels}
        means = {c: spread.mean for c, spread in spreads.items() if spread is not None}
        if means:
            best = max(means, key=lambda c: means[c])
            parts.append(
                f"At depth {depth}, {best} channels give the best graded score, {means[best]:.3f}."
            )
    corners = [scores.get((depth, c), {}) for depth in (deep, shallow) for c in (more, fewer)]
    shared = [seed for seed in study.seeds if all(seed in corner for corner in corners)]
    if not shared:
        return " ".join([*parts, "No seed finished at both depths; their gap cannot be compared."])
    deep_more, deep_fewer, shallow_more, shallow_fewer = (
        [corner[seed] for seed in shared] for corner in corners
    )
    at_deep = paired_difference(deep_more, deep_fewer)
    at_shallow = paired_difference(shallow_more, shallow_fewer)
    # (deep_more − deep_fewer) − (shallow_more − shallow_fewer), as sums of scores
    change = paired_difference(
        np.add(deep_more, shallow_fewer).tolist(), np.add(deep_fewer, shallow_more).tolist()
    )
    described = change.describe(
        more="depth favours more channels, as in the paper",
        less="depth favours fewer channels, against the paper",
    )
    return " ".join(
        [
            *parts,
            f"{more} minus {fewer} channels is {at_shallow} at depth {shallow} and {at_deep} at "
            f"depth {deep}. The change is {described}.",
        ]
    )


def _figures(study: AutoencoderChannels, rows: Sequence[Row]) -> tuple[Plot, ...]:
    plots: list[Plot] = []
    for metric, label in (("frechet", "Fréchet distance"), ("graded", "graded score")):
        scores, curves = _scores(rows, metric), dict[str, Curve]()
        for channels in study.channels:
            found = {depth: _spread(scores, depth, channels) for depth in study.depths}
            spreads = {depth: spread for depth, spread in found.items() if spread is not None}
            has_band = all(spread.num > 1 for spread in spreads.values())
            curves[f"{channels} channels"] = Curve(
                xs=list(spreads),
                ys=[spread.mean for spread in spreads.values()],
                low=[s.mean - s.std for s in spreads.values()] if has_band else None,
                high=[s.mean + s.std for s in spreads.values()] if has_band else None,
            )
        plots.append(
            plot_curves(
                f"{metric}_over_depth.svg",
                curves,
                caption=f"{label[0].upper()}{label[1:]} of samples over depth (figure 10), ± one "
                "standard deviation over seeds",
                x_label="depth",
                y_label=label,
            )
        )
    return tuple(plots)


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values)) if values else "none"
