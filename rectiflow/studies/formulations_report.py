"""What the formulations' numbers say: ranks as in table 1, metrics as in table 2, figure 3.

A setting is a world, weights and a sampler; its competitors are ranked by CLIP score (more is
better) and Fréchet distance (less is better). The first seed ranks all and chooses the leaders. The
best of many in one draw owes part of it to that draw, so what the verdict says of the leaders rests
on the other seeds alone. Source: arXiv 2403.03206, section 5.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr

from rectiflow.flow import ResolutionShift, parse_formulation
from rectiflow.studies.comparison import seedwise_difference, spread_of
from rectiflow.studies.plots import Curve, plot_curves
from rectiflow.studies.ranking import (
    MeanRank,
    mean_ranks,
    ranks_with_intervals,
    widest_confidence,
)
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


def first_seed(rows: Sequence[Row]) -> int:
    """The seed of the first round, which every formulation has."""
    return min(row["seed"] for row in rows)


def leaders_of(rows: Sequence[Row], num: int) -> list[str]:
    """The `num` formulations of the first seed's best mean rank over all settings, best first."""
    return _Ranks(_first(rows)).ordered()[:num]


class _Ranks:
    """Ranks of the competitors in `rows`, setting by setting of each of the rows' seeds."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.names = list(dict.fromkeys(row["formulation"] for row in rows))
        samples = {
            (row["formulation"], (row["seed"], setting_of(row))): row for row in sampled(rows)
        }
        self._places = sorted({place for _, place in samples})
        self.settings = sorted({setting for _, setting in self._places})
        self.seeds = sorted({seed for seed, _ in self._places})
        self._measured = {
            place: np.stack([_measured(samples.get((name, place))) for name in self.names])
            for place in self._places
        }
        self._replicates = {
            place: _stack([_replicates(samples.get((name, place))) for name in self.names])
            for place in self._places
        }

    @property
    def num_replicates(self) -> int:
        return next(iter(self._replicates.values())).shape[1]

    @property
    def confidence(self) -> float:
        """That of the intervals: as much of 95 % as the replicates allow."""
        return min(0.95, widest_confidence(self.num_replicates))

    def over(self, is_wanted: Callable[[Setting], bool]) -> tuple[MeanRank, ...]:
        """Each name's mean rank in some settings of all seeds, with its bootstrap interval.

        Raises:
            ValueError: there are no such settings.
        """
        wanted = [place for place in self._places if is_wanted(place[1])]
        return ranks_with_intervals(
            [self._measured[place] for place in wanted],
            [self._replicates[place] for place in wanted],
        )

    @cached_property
    def everywhere(self) -> dict[str, MeanRank]:
        """Mean ranks over all settings by name."""
        return dict(zip(self.names, self.over(lambda _: True)))

    def by_seed(self) -> dict[str, dict[int, float]]:
        """Each name's mean rank over the settings of each seed."""
        found: dict[str, dict[int, float]] = {name: {} for name in self.names}
        for seed in self.seeds:
            ranks = mean_ranks(
                [self._measured[place] for place in self._places if place[0] == seed]
            )
            for name, rank in zip(self.names, ranks.tolist(), strict=True):
                found[name][seed] = rank
        return found

    def ordered(self) -> list[str]:
        """Names by mean rank over all settings, best first."""
        means = mean_ranks([self._measured[place] for place in self._places])
        return [self.names[i] for i in np.argsort(means, kind="stable")]


def _first(rows: Sequence[Row]) -> list[Row]:
    first = first_seed(rows)
    return [row for row in rows if row["seed"] == first]


def _fresh_ranks(rows: Sequence[Row]) -> _Ranks | None:
    """Ranks among those that were run again, over the seeds that had no part in choosing them."""
    first = first_seed(rows)
    fresh = [row for row in rows if row["seed"] != first]
    return _Ranks(fresh) if sampled(fresh) else None


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
    ranks, fresh, pictures = _Ranks(_first(rows)), _fresh_ranks(rows), sampled(rows)
    order = ranks.ordered()
    tables = [_rank_table(ranks, order), _metric_table(pictures, order)]
    if fresh is not None:
        tables.append(_fresh_table(fresh, rows))
    return Report(
        setting=_setting(study, pictures, fresh),
        verdict=_verdict(ranks, fresh, rows),
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
            f"{len(ranks.settings)} settings of seed {ranks.seeds[0]}; "
            f"{100 * ranks.confidence:.0f} % intervals over {ranks.num_replicates} redraws of the "
            "pictures within each task. A rank may lie outside its own: the redraws' bias is taken "
            "off, and scatter puts competitors on fewer fronts. Intervals say nothing about "
            "another seed, and who comes first of so many in one draw owes part of it to luck. "
            "The paper's ranks come from 24 settings on its own data."
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


def _fresh_table(fresh: _Ranks, rows: Sequence[Row]) -> Table:
    """Ranks and metrics over the fresh seeds, and the rank on the first seed beside them."""
    first, names = first_seed(rows), fresh.ordered()
    chosen = _Ranks([row for row in _first(rows) if row["formulation"] in names]).everywhere
    averaged = [row for row in sampled(rows) if row["seed"] != first and row["weights"] == "ema"]
    num_settings = len({setting_of(row) for row in averaged})
    lines: list[tuple[str, ...]] = []
    for name in names:
        found = {
            seed: of_seed
            for seed in fresh.seeds
            for of_seed in [
                [row for row in averaged if (row["formulation"], row["seed"]) == (name, seed)]
            ]
            # What diverged in some worlds would be averaged over other settings than its rivals.
            if len(of_seed) == num_settings
        }
        lines.append(
            (
                f"`{name}`",
                _rank(fresh.everywhere[name]),
                _rank(chosen[name]),
                f"{len(found)} of {len(fresh.seeds)}",
                *(
                    spread_of(
                        [float(np.mean([row[metric] for row in part])) for part in found.values()]
                    ).text()
                    if found
                    else ""
                    for metric in ("graded", "clip_score", "frechet", "cmmd")
                ),
            )
        )
    return Table(
        title="The leaders on fresh seeds",
        header=(
            "formulation",
            "mean rank",
            f"mean rank on seed {first}",
            "seeds measured",
            "graded",
            "CLIP score",
            "Fréchet",
            "CMMD",
        ),
        rows=tuple(lines),
        note=(
            f"Ranks among these {len(names)} alone. All but the column of seed {first} is of "
            f"{_seeds_named(fresh.seeds)}: seed {first} chose the leaders and so flatters them. "
            "Metrics are means over the sampler settings with EMA weights ± standard deviation "
            "over the seeds of which every setting was measured; a run that diverged ranks last."
        ),
    )


def _seeds_named(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _setting(study: Formulations, pictures: Sequence[Row], fresh: _Ranks | None) -> str:
    any_row, first = pictures[0], first_seed(pictures)
    also = (
        f", whose best {study.num_leaders} are the leaders; they, and those that the paper's claim "
        f"is about, again with {_seeds_named(fresh.seeds)}"
        if fresh is not None
        else ""
    )
    return (
        f"MM-DiT of depth {study.depth}, {study.num_steps} steps of 16 pictures on "
        f"{' and '.join(study.worlds)} ({study.num_pictures:,} pictures), the small recipe's shift "
        "for all; a path that ends before pure noise, as `linear` does, takes times that are "
        f"shifted beyond its end there: {_share_at_end('eps/linear', study.shift):.0%} of those of "
        f"`eps/linear`. Of {study.num_looks} checkpoints that of the least held-out EMA loss. "
        f"{len(study.settings)} sampler settings × EMA and raw weights, "
        f"{any_row['num_pictures']} pictures each, CLIP features of the embedded image tower. "
        f"Seed {first} for all{also}."
    )


def _share_at_end(name: str, shift: ResolutionShift) -> float:
    """The share of a formulation's drawn times that the shift leaves at its path's very end."""
    formulation = parse_formulation(name)
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    t = shift.along(formulation.path, formulation.timesteps.from_uniform(u))
    return (t >= formulation.path.time_range[1]).double().mean().item()


def _verdict(ranks: _Ranks, fresh: _Ranks | None, rows: Sequence[Row]) -> str:
    first, order = ranks.seeds[0], ranks.ordered()
    again = fresh.ordered() if fresh is not None else []
    diverged = sorted({row["formulation"] for row in rows if row["diverged"]})
    parts = [
        _lead(fresh) if fresh is not None else "No fresh seed was run, so no winner is named.",
        f"Seed {first} alone, by which leaders are chosen, has `{order[0]}` first of {len(order)}: "
        f"{_rank(ranks.everywhere[order[0]])}.",
    ]
    for name in ("rf/lognorm(0.00,1.00)", "rf", "eps/linear"):
        if name in order:
            there = (
                f"number {again.index(name) + 1} of {len(again)} on fresh seeds and "
                if name in again
                else ""
            )
            parts.append(
                f"`{name}` is {there}number {order.index(name) + 1} of {len(order)} on seed "
                f"{first}: {_rank(ranks.everywhere[name])}; the paper has it at "
                f"{PAPER_RANKS[name]:.2f}."
            )
    common = [name for name in PAPER_RANKS if name in order]
    if len(common) > 2:
        ours = [ranks.everywhere[name].mean for name in common]
        rho = spearmanr(ours, [PAPER_RANKS[name] for name in common])[0]
        parts.append(
            f"Over the {len(common)} formulations whose ranks the paper prints, its order and that "
            f"of seed {first} have a Spearman correlation of {rho:.2f}."
        )
    parts.append(f"Diverged: {', '.join(diverged)}." if diverged else "No run diverged.")
    return " ".join(parts)


def _lead(fresh: _Ranks) -> str:
    """Who comes first over the fresh seeds, and whether the seeds agree that it is the best."""
    best, *others = fresh.ordered()
    if not others:
        return f"Only `{best}` was run again, over {_seeds_named(fresh.seeds)}: no winner is named."
    by_seed = fresh.by_seed()
    behind = [seedwise_difference(by_seed[name], by_seed[best]) for name in others]
    num_clear = sum(lag is not None and lag.low > 0.0 for lag in behind)
    lead = (
        f"Over {_seeds_named(fresh.seeds)}, which had no part in choosing, `{best}` has the best "
        f"mean rank of the {len(fresh.names)} that were run again, {_rank(fresh.everywhere[best])}"
    )
    if num_clear == len(others):
        return f"{lead}, clear of each of the others seed by seed: it trains best here."
    return (
        f"{lead}, but seed by seed it is clear of {num_clear or 'none'} of the {len(others)} "
        "others: no winner is named."
    )


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
