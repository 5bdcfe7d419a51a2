"""What growing runs say: loss against scores, a power law put to test, and the way's straightness.

Source: arXiv 2403.03206, section 5.3.3, figure 8 and table 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import spearmanr

from rectiflow.studies.bands import curve_over
from rectiflow.studies.comparison import seedwise_difference, spread_of
from rectiflow.studies.path_length import independent_length
from rectiflow.studies.plots import Curve, plot_curves
from rectiflow.studies.scaling_fit import LawTrial, try_laws
from rectiflow.studies.study import Plot, Report, Row, Table

if TYPE_CHECKING:
    from rectiflow.studies.scaling import Scaling

#: Scores beside the loss: title, and the sign that makes more of them better.
SCORES = {
    "graded": ("graded", 1.0),
    "clip_score": ("CLIP score", 1.0),
    "frechet": ("Fréchet distance", -1.0),
    "cmmd": ("CMMD", -1.0),
}
#: Scores whose relative drop means something: those that have a zero.
DROPPING = ("clip_score", "graded")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Spearman's correlation of falling loss with a rising score; 1 is the same order.

    `by_size` leaves out sizes whose loss or score never changes.
    """

    overall: float
    by_size: dict[int, float]

    @property
    def within_size(self) -> float:
        """The mean over sizes, NaN without any."""
        return float(np.mean(list(self.by_size.values()))) if self.by_size else float("nan")


def agreement_of(looks: Sequence[Row], score: str) -> Agreement:
    """How well the loss orders a score, over all (size × checkpoint) and within each size."""
    by_size = {
        depth: _agreement([row for row in looks if row["depth"] == depth], score)
        for depth in sorted({row["depth"] for row in looks})
    }
    return Agreement(
        overall=_agreement(looks, score),
        by_size={depth: rho for depth, rho in by_size.items() if not np.isnan(rho)},
    )


def relative_drop(rows: Sequence[Row], score: str, num_steps: int) -> dict[int, float]:
    """By seed, how many percent of the score at the most steps are lost at `num_steps`.

    Seeds whose score at the most steps is not positive are left out. `rows` are one size's sweep.
    """
    most = max(row["num_steps"] for row in rows)
    by_steps = {(row["seed"], row["num_steps"]): row[score] for row in rows}
    return {
        seed: 100.0 * (1.0 - value / full)
        for (seed, steps), value in by_steps.items()
        if steps == num_steps and (full := by_steps.get((seed, most), 0.0)) > 0.0
    }


def report_scaling(study: Scaling, rows: Sequence[Row]) -> Report:
    """Tables, plots and verdict."""
    looks = [row for row in rows if row.get("kind") == "look"]
    diverged = sorted({row["cell"] for row in rows if row["diverged"]})
    ending = f"Diverged: {', '.join(diverged)}." if diverged else "No run diverged."
    if not looks:
        return Report(setting=_setting(study), verdict=f"Nothing was measured. {ending}")
    laws = try_laws(looks)
    sweep = _by_depth(rows, "sweep")
    paths = _by_depth(rows, "path")
    return Report(
        setting=_setting(study),
        verdict=" ".join(
            [
                _size_verdict(looks),
                _agreement_verdict(looks),
                *map(_law_verdict, laws),
                _drop_verdict(sweep),
                _path_verdict(paths),
                ending,
            ]
        ),
        tables=(
            _run_table(looks),
            _agreement_table(looks),
            *([_law_table(laws, looks)] if laws else []),
            _sweep_table(sweep, paths),
        ),
        plots=_plots(looks),
    )


def _agreement(looks: Sequence[Row], score: str) -> float:
    losses, values = [row["ema_loss"] for row in looks], [row[score] for row in looks]
    if len(set(losses)) < 2 or len(set(values)) < 2:
        return float("nan")
    found: Any = spearmanr(losses, values)
    return -SCORES[score][1] * float(found.statistic)


def _by_depth(rows: Sequence[Row], kind: str) -> dict[int, list[Row]]:
    found = [row for row in rows if row.get("kind") == kind]
    return {
        depth: [row for row in found if row["depth"] == depth]
        for depth in sorted({row["depth"] for row in found})
    }


def _last(looks: Sequence[Row]) -> dict[int, list[Row]]:
    last = max(row["step"] for row in looks)
    return _by_depth([row for row in looks if row["step"] == last], "look")


def _run_table(looks: Sequence[Row]) -> Table:
    return Table(
        title="After the last step",
        header=(
            "depth",
            "parameters",
            "training FLOPs",
            "held-out loss",
            *(title for title, _ in SCORES.values()),
        ),
        rows=tuple(
            (
                str(depth),
                f"{found[0]['parameters'] / 1e6:.2f} M",
                f"{found[0]['train_flops']:.2e}",
                spread_of([row["ema_loss"] for row in found]).text(4),
                *(spread_of([row[score] for row in found]).text() for score in SCORES),
            )
            for depth, found in _last(looks).items()
        ),
        note=(
            f"EMA weights, {looks[0]['num_pictures']} pictures; mean ± standard deviation over "
            "seeds. Training FLOPs are three forward passes for each picture seen."
        ),
    )


def _agreement_table(looks: Sequence[Row]) -> Table:
    depths = sorted({row["depth"] for row in looks})
    found = {score: agreement_of(looks, score) for score in SCORES}
    return Table(
        title="Does the loss tell quality? (figure 8)",
        header=(
            "score",
            f"over all {len(looks)} points",
            "within a size, mean",
            *(f"depth {depth}" for depth in depths),
        ),
        rows=tuple(
            (
                SCORES[score][0],
                f"{agreement.overall:.2f}",
                f"{agreement.within_size:.2f}",
                *(
                    f"{agreement.by_size[depth]:.2f}" if depth in agreement.by_size else ""
                    for depth in depths
                ),
            )
            for score, agreement in found.items()
        ),
        note=(
            "Spearman's correlation over runs and checkpoints, turned so that 1 means: less loss, "
            "better score, always. Within a size, size itself cannot make the correlation."
        ),
    )


def _law_table(laws: Sequence[LawTrial], looks: Sequence[Row]) -> Table:
    depth, naive = _naive(looks)
    return Table(
        title="Power laws, tested on the largest size",
        header=("law", "points", "E", "exponents", "predicted", "measured", "error"),
        rows=(
            *(
                (
                    f"`{tested.formula}`",
                    str(tested.num_points),
                    f"{tested.law.floor:.3f}",
                    ", ".join(exponent.text() for exponent in tested.exponents),
                    tested.predicted.text(4),
                    f"{tested.measured:.4f}",
                    f"{100 * tested.error:+.1f} %",
                )
                for tested in laws
            ),
            (
                f"as depth {depth}",
                "",
                "",
                "",
                f"{naive:.4f}",
                f"{laws[0].measured:.4f}",
                f"{100 * (naive / laws[0].measured - 1):+.1f} %",
            ),
        ),
        note=(
            "The fit sees all sizes but the largest, whose last held-out loss is predicted; "
            "N are parameters, D pictures seen, C training FLOPs, of which only the frontier "
            "(no cheaper run is better) is fitted. In brackets 90 % of the redraws of whole runs. "
            "The last line guesses that size changes nothing more. Checkpoints before the last "
            "have not had the decay of the learning rate, which no law here knows."
        ),
    )


def _naive(looks: Sequence[Row]) -> tuple[int, float]:
    """The second largest depth and its last loss."""
    last = _last(looks)
    depth = sorted(last)[-2]
    return depth, spread_of([row["ema_loss"] for row in last[depth]]).mean


def _sweep_table(sweep: dict[int, list[Row]], paths: dict[int, list[Row]]) -> Table:
    rows = [row for found in sweep.values() for row in found]
    steps = sorted({row["num_steps"] for row in rows})
    fewer, most = steps[:-1], steps[-1]
    scales = sorted({row["guidance_scale"] for found in paths.values() for row in found})
    dim = next(row["latent_dim"] for found in paths.values() for row in found)

    def drop(depth: int, score: str, num_steps: int) -> str:
        values = relative_drop(sweep[depth], score, num_steps)
        return f"{spread_of(list(values.values())).text(2)} %" if values else ""

    return Table(
        title="Few steps, and the length of the way (table 6)",
        header=(
            "depth",
            *(f"{SCORES[score][0]}, {n}/{most}" for score in DROPPING for n in fewer),
            *(f"path, CFG {scale:g}" for scale in scales),
        ),
        rows=tuple(
            (
                str(depth),
                *(drop(depth, score, n) for score in DROPPING for n in fewer),
                *(
                    spread_of(list(lengths.values())).text(2)
                    if (lengths := _lengths(paths[depth], scale))
                    else ""
                    for scale in scales
                ),
            )
            for depth in sweep
        ),
        note=(
            f"Relative drop against {most} steps, and Σ‖v·dt‖ over {most} steps from fixed noise "
            f"(mean over pictures); mean ± standard deviation over seeds. "
            f"√(2·{dim}) = {independent_length(dim):.2f} is how far noise lies from unrelated "
            "data. The paper: drops 4.30, 0.86, 0.21 % at depth 15 and 2.71, 0.14, 0.08 % at 38, "
            "paths 191.13 and 185.96 where √(2·dim) is 181.02."
        ),
    )


def _lengths(paths: Sequence[Row], scale: float) -> dict[int, float]:
    """Mean path length by seed at a guidance scale."""
    return {row["seed"]: row["path_length"] for row in paths if row["guidance_scale"] == scale}


def _plots(looks: Sequence[Row]) -> tuple[Plot, ...]:
    by_depth = _by_depth(looks, "look")
    names = {depth: f"depth {depth}" for depth in by_depth}
    return (
        plot_curves(
            "loss_over_compute.svg",
            {
                names[depth]: curve_over(found, x="train_flops", y="ema_loss")
                for depth, found in by_depth.items()
            },
            caption=(
                "Held-out loss of EMA weights over training compute (figure 8); bands are one "
                "standard deviation over seeds"
            ),
            x_label="training FLOPs",
            y_label="held-out loss",
            is_x_log=True,
        ),
        *(
            plot_curves(
                f"{score}_over_loss.svg",
                {
                    names[depth]: Curve(
                        xs=[row["ema_loss"] for row in found], ys=[row[score] for row in found]
                    )
                    for depth, found in by_depth.items()
                },
                caption=f"{SCORES[score][0]} against held-out loss, a point a checkpoint",
                x_label="held-out loss",
                y_label=SCORES[score][0],
                is_scatter=True,
            )
            for score in ("graded", "clip_score")
        ),
    )


def _setting(study: Scaling) -> str:
    return (
        f"MM-DiTs of depths {', '.join(map(str, study.depths))} (width 64 a block), seeds "
        f"{', '.join(map(str, study.seeds))}: {study.num_steps} steps of 16 pictures on world "
        f"`{study.world}` ({study.num_pictures:,} pictures), the peak rate over the width; "
        f"{study.num_looks} checkpoints of EMA weights, scored at {study.setting}. Sampler sweep "
        f"after the last step with {', '.join(map(str, study.sweep_steps))} steps."
    )


def _size_verdict(looks: Sequence[Row]) -> str:
    losses = [spread_of([row["ema_loss"] for row in found]).mean for found in _last(looks).values()]
    falling = sum(later < earlier for earlier, later in pairwise(losses))
    return (
        f"After the last step the held-out loss falls with size in {falling} of "
        f"{len(losses) - 1} increments of depth ({losses[0]:.4f} to {losses[-1]:.4f})."
    )


def _agreement_verdict(looks: Sequence[Row]) -> str:
    parts = [
        f"{SCORES[score][0]} {found.overall:.2f} over all points and {found.within_size:.2f} "
        f"within sizes"
        for score in DROPPING
        for found in [agreement_of(looks, score)]
    ]
    within = [agreement_of(looks, score).within_size for score in DROPPING]
    strength = _strength(min(within)) if not np.isnan(within).any() else "undecidedly"
    return (
        f"Falling loss goes with rising scores {strength} (Spearman: {'; '.join(parts)}); the "
        "paper reports a strong correlation."
    )


def _strength(rho: float) -> str:
    if rho >= 0.8:
        return "closely"
    return "loosely" if rho >= 0.4 else "hardly"


def _law_verdict(tested: LawTrial) -> str:
    inside = tested.predicted.low <= tested.measured <= tested.predicted.high
    return (
        f"`{tested.formula}`, fitted without the largest size, predicts its loss with "
        f"{100 * tested.error:+.1f} % error ({tested.predicted.text(4)}, measured "
        f"{tested.measured:.4f}, {'inside' if inside else 'outside'} the interval)."
    )


def _drop_verdict(sweep: dict[int, list[Row]]) -> str:
    small, large = min(sweep), max(sweep)
    fewest = min(row["num_steps"] for row in sweep[large])
    first = relative_drop(sweep[small], "clip_score", fewest)
    second = relative_drop(sweep[large], "clip_score", fewest)
    difference = seedwise_difference(first, second)
    if difference is None or small == large:
        return "Whether larger models lose less at few steps cannot be told from these runs."
    return (
        f"At {fewest} steps the CLIP score loses {spread_of(list(first.values())).mean:.1f} % at "
        f"depth {small} and {spread_of(list(second.values())).mean:.1f} % at depth {large}: "
        + (
            f"larger models lose {'less, as in the paper' if difference.mean > 0 else 'more'}."
            if difference.is_clear
            else "whether larger models lose less, the seeds leave open."
        )
    )


def _path_verdict(paths: dict[int, list[Row]]) -> str:
    small, large = min(paths), max(paths)
    guided = max(row["guidance_scale"] for row in paths[large])
    first, second = _lengths(paths[small], guided), _lengths(paths[large], guided)
    difference = seedwise_difference(first, second)
    if difference is None or small == large:
        return "Whether larger models take shorter ways cannot be told from these runs."
    direction = "shorter, as in the paper" if difference.mean > 0 else "longer"
    if not difference.is_clear:
        direction = "a difference that the seeds leave open"
    return (
        f"At CFG {guided:g} ways are {spread_of(list(first.values())).mean:.2f} long at depth "
        f"{small} and {spread_of(list(second.values())).mean:.2f} at depth {large}, {direction}."
    )
