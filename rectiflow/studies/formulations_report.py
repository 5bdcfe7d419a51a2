"""What the formulations' numbers say: ranks as in table 1, metrics as in table 2, figure 3.

A setting is a world, weights and a sampler; its competitors are ranked by CLIP score (more is
better) and Fréchet distance (less is better). Source: arXiv 2403.03206, section 5.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr

from rectiflow.flow import ResolutionShift, parse_formulation
from rectiflow.studies.plots import Curve, plot_curves
from rectiflow.studies.ranking import MeanRank, ranks_with_intervals
from rectiflow.studies.study import Plot, Report, Row, Table

if TYPE_CHECKING:
    from rectiflow.studies.formulations import Formulations

#: The paper's table 1: mean ranks over all settings.
PAPER_RANKS = {
    "rf/lognorm(0.00,1.00)": 1.54,
    "rf/lognorm(1.00,0.60)": 2.08,
    "rf/lognorm(0.50,0.60)": 2.71,
    "rf/mode(1.29)": 2.75,
    "rf/lognorm(0.50,1.00)": 2.83,
    "eps/linear": 2.88,
    "rf/mode(1.75)": 3.33,
    "rf/cosmap": 4.13,
    "edm(0.00,0.60)": 5.63,
    "rf": 5.67,
    "v/linear": 6.83,
    "edm(0.60,1.20)": 9.0,
    "v/cos": 9.17,
    "edm/cos": 11.04,
    "edm/rf": 13.04,
    "edm(-1.20,1.20)": 15.58,
}
#: Metrics that rank, with the sign that makes more of them better.
METRICS = (("clip_score", 1.0), ("frechet", -1.0))
#: Shown by name in figure 3.
SHOWN = ("rf/lognorm(0.00,1.00)", "rf", "eps/linear", "v/cos", "rf/mode(1.29)", "edm(-1.20,1.20)")

Setting = tuple[str, str, int, float]


def setting_of(row: Row) -> Setting:
    """(world, weights, steps, guidance) of a samples row."""
    return row["world"], row["weights"], row["num_steps"], row["guidance_scale"]


def leaders_of(rows: Sequence[Row], num: int) -> list[str]:
    """The `num` formulations of the best mean rank over all settings, best first."""
    return _Ranks(rows).ordered()[:num]


class _Ranks:
    """Scores of the first seed's competitors by setting, and ranks over groups of settings."""

    def __init__(self, rows: Sequence[Row]) -> None:
        first = min(row["seed"] for row in rows)
        rows = [row for row in rows if row["seed"] == first]
        self.names = list(dict.fromkeys(row["formulation"] for row in rows))
        samples = {(row["formulation"], setting_of(row)): row for row in sampled(rows)}
        self.settings = sorted({setting for _, setting in samples})
        self._measured = {
            setting: np.stack([_measured(samples.get((name, setting))) for name in self.names])
            for setting in self.settings
        }
        self._replicates = {
            setting: _stack([_replicates(samples.get((name, setting))) for name in self.names])
            for setting in self.settings
        }

    def over(self, is_wanted: Callable[[Setting], bool]) -> tuple[MeanRank, ...]:
        """Each name's mean rank in some settings, with its bootstrap interval.

        Raises:
            ValueError: there are no such settings.
        """
        wanted = [setting for setting in self.settings if is_wanted(setting)]
        return ranks_with_intervals(
            [self._measured[setting] for setting in wanted],
            [self._replicates[setting] for setting in wanted],
        )

    def ordered(self) -> list[str]:
        """Names by mean rank over all settings, best first."""
        means = [rank.mean for rank in self.over(lambda _: True)]
        return [self.names[i] for i in np.argsort(means, kind="stable")]


def sampled(rows: Sequence[Row]) -> list[Row]:
    """The rows that measure pictures."""
    return [row for row in rows if row.get("kind") == "samples"]


def _measured(row: Row | None) -> Float[np.ndarray, " m"]:
    """The ranking metrics, more being better; NaN for a run that diverged."""
    return np.array([np.nan if row is None else sign * row[name] for name, sign in METRICS])


def _replicates(row: Row | None) -> Float[np.ndarray, "r m"] | None:
    if row is None:
        return None
    return np.array([sign * np.array(row[f"{name}_replicates"]) for name, sign in METRICS]).T


def _stack(parts: Sequence[Float[np.ndarray, "r m"] | None]) -> Float[np.ndarray, "n r m"]:
    shape = next(part.shape for part in parts if part is not None)
    return np.stack([np.full(shape, np.nan) if part is None else part for part in parts])


def report_formulations(study: Formulations, rows: Sequence[Row]) -> Report:
    """Tables, figure and verdict."""
    ranks, pictures = _Ranks(rows), sampled(rows)
    order = ranks.ordered()
    tables = [_rank_table(ranks, order), _metric_table(pictures, order)]
    if len({row["seed"] for row in pictures}) > 1:
        tables.append(_seeds_table(pictures))
    return Report(
        setting=_setting(study, pictures),
        verdict=_verdict(ranks, order, rows),
        tables=tuple(tables),
        plots=_figure(pictures),
    )


def _rank_table(ranks: _Ranks, order: Sequence[str]) -> Table:
    groups: dict[str, Callable[[Setting], bool]] = {
        "all": lambda _: True,
        "5 steps": lambda setting: setting[2] == 5,
        "50 steps": lambda setting: setting[2] == 50,
        "EMA weights": lambda setting: setting[1] == "ema",
    }
    columns = {
        title: dict(zip(ranks.names, ranks.over(is_wanted)))
        for title, is_wanted in groups.items()
        if any(map(is_wanted, ranks.settings))
    }
    return Table(
        title="Mean ranks (table 1)",
        header=("", "formulation", *columns, "paper, all"),
        rows=tuple(
            (
                str(place),
                f"`{name}`",
                *(_rank(column[name]) for column in columns.values()),
                f"{PAPER_RANKS[name]:.2f}" if name in PAPER_RANKS else "",
            )
            for place, name in enumerate(order, start=1)
        ),
        note=(
            "The front of non-dominated sorting by CLIP score and Fréchet distance, averaged over "
            f"{len(ranks.settings)} settings; 95 % intervals over redrawn prompts, which say "
            "nothing about another seed. The paper's ranks come from 24 settings on its own data."
        ),
    )


def _rank(rank: MeanRank) -> str:
    return f"{rank.mean:.2f} [{rank.low:.2f}, {rank.high:.2f}]"


def _metric_table(pictures: Sequence[Row], order: Sequence[str]) -> Table:
    """The metrics of EMA weights at 25 guided steps, or what comes nearest to them."""
    shown = min(
        {setting_of(row) for row in pictures},
        key=lambda s: (s[1] != "ema", abs(s[2] - 25), -s[3], s[0]),
    )
    world, _, num_steps, guidance_scale = shown
    first = min(row["seed"] for row in pictures)
    found = {
        row["formulation"]: row
        for row in pictures
        if setting_of(row) == shown and row["seed"] == first
    }
    any_row = next(iter(found.values()))
    return Table(
        title=f"Metrics at {num_steps} steps, CFG {guidance_scale:g}, EMA weights (table 2)",
        header=("formulation", "CLIP score", "Fréchet", "CMMD", "graded", "correct"),
        rows=tuple(
            (
                f"`{name}`",
                f"{row['clip_score']:.3f}",
                f"{row['frechet']:.3f}",
                f"{row['cmmd']:.2f}",
                f"{row['graded']:.3f}",
                f"{row['correct']:.3f}",
            )
            for name in order
            for row in [found.get(name)]
            if row is not None
        ),
        note=(
            f"World `{world}`, {any_row['num_pictures']} pictures against "
            f"{any_row['num_reference']} real ones. The Fréchet distance of so few pictures is "
            "biased upwards, alike for all; CMMD is not."
        ),
    )


def _seeds_table(pictures: Sequence[Row]) -> Table:
    """Means over settings of EMA weights, and how far the seeds lie apart."""
    seeds = sorted({row["seed"] for row in pictures})
    repeated = {row["formulation"] for row in pictures if row["seed"] != seeds[0]}
    lines: list[tuple[float, tuple[str, ...]]] = []
    for name in repeated:
        cells, graded = [f"`{name}`"], 0.0
        for metric in ("graded", "clip_score", "frechet", "cmmd"):
            values = [
                float(
                    np.mean(
                        [
                            row[metric]
                            for row in pictures
                            if row["formulation"] == name
                            and row["seed"] == seed
                            and row["weights"] == "ema"
                        ]
                    )
                )
                for seed in seeds
            ]
            graded = float(np.mean(values)) if metric == "graded" else graded
            cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}")
        lines.append((-graded, tuple(cells)))
    return Table(
        title=f"The leaders with {len(seeds)} seeds",
        header=("formulation", "graded", "CLIP score", "Fréchet", "CMMD"),
        rows=tuple(cells for _, cells in sorted(lines)),
        note="Mean over the sampler settings with EMA weights ± standard deviation over seeds.",
    )


def _setting(study: Formulations, pictures: Sequence[Row]) -> str:
    any_row, seeds = pictures[0], sorted({row["seed"] for row in pictures})
    also = f"; the leaders also with {', '.join(map(str, seeds[1:]))}" if seeds[1:] else ""
    return (
        f"MM-DiT of depth {study.depth}, {study.num_steps} steps of 16 pictures on "
        f"{' and '.join(study.worlds)} ({study.num_pictures:,} pictures), the small recipe's shift "
        "for all; a path that ends before pure noise, as `linear` does, takes times that are "
        f"shifted beyond its end there: {_share_at_end('eps/linear', study.shift):.0%} of those of "
        f"`eps/linear`. Of {study.num_looks} checkpoints that of the least held-out EMA loss. "
        f"{len(study.settings)} sampler settings × EMA and raw weights, "
        f"{any_row['num_pictures']} pictures each, CLIP features of the embedded image tower. "
        f"Seed {seeds[0]}{also}."
    )


def _share_at_end(name: str, shift: ResolutionShift) -> float:
    """The share of a formulation's drawn times that the shift leaves at its path's very end."""
    formulation = parse_formulation(name)
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    t = shift.along(formulation.path, formulation.timesteps.from_uniform(u))
    return (t >= formulation.path.time_range[1]).double().mean().item()


def _verdict(ranks: _Ranks, order: Sequence[str], rows: Sequence[Row]) -> str:
    by_name = dict(zip(ranks.names, ranks.over(lambda _: True)))
    diverged = sorted({row["formulation"] for row in rows if row["diverged"]})
    parts = [
        f"`{order[0]}` has the best mean rank here, {_rank(by_name[order[0]])}, of {len(order)}."
    ]
    parts += [
        f"`{name}` is number {order.index(name) + 1}: {_rank(by_name[name])}; the paper has it "
        f"at {PAPER_RANKS[name]:.2f}."
        for name in ("rf/lognorm(0.00,1.00)", "rf", "eps/linear")
        if name in by_name
    ]
    common = [name for name in PAPER_RANKS if name in by_name]
    if len(common) > 2:
        ours = [by_name[name].mean for name in common]
        rho = spearmanr(ours, [PAPER_RANKS[name] for name in common])[0]
        parts.append(
            f"Over the {len(common)} formulations whose ranks the paper prints, its order and this "
            f"one have a Spearman correlation of {rho:.2f}."
        )
    parts.append(f"Diverged: {', '.join(diverged)}." if diverged else "No run diverged.")
    return " ".join(parts)


def _figure(pictures: Sequence[Row]) -> tuple[Plot, ...]:
    """Metrics over solver steps at the greatest guidance that has several numbers of them."""
    scale = max(row["guidance_scale"] for row in pictures)
    first, world = pictures[0]["seed"], pictures[0]["world"]
    wanted = [
        row
        for row in pictures
        if (row["guidance_scale"], row["weights"], row["seed"], row["world"])
        == (scale, "ema", first, world)
    ]
    plots: list[Plot] = []
    for metric, label in (("clip_score", "CLIP score"), ("frechet", "Fréchet distance")):
        curves = {
            name: Curve(xs=[row["num_steps"] for row in points], ys=[row[metric] for row in points])
            for name in SHOWN
            for points in [
                sorted(
                    (row for row in wanted if row["formulation"] == name),
                    key=lambda row: row["num_steps"],
                )
            ]
            if points
        }
        plots.append(
            plot_curves(
                f"{metric}_over_steps.svg",
                curves,
                caption=f"{label} over Euler steps (figure 3), EMA weights, CFG {scale:g}",
                x_label="steps",
                y_label=label,
                is_x_log=True,
            )
        )
    return tuple(plots)
