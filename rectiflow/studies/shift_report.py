"""What the shifts' numbers say: scores over the multiplier of the shift, and what theory expects.

Source: arXiv 2403.03206, section 5.3.2: people strongly preferred sampling shifts above 1.5 at
1024² pixels and saw little difference above; 3 was used from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rectiflow.studies.comparison import (
    Difference,
    paired_difference,
    seedwise_difference,
    spread_of,
)
from rectiflow.studies.plots import Curve, plot_curves
from rectiflow.studies.study import Plot, Report, Row, Table

if TYPE_CHECKING:
    from rectiflow.studies.shift import Shift

TRAINED, SAMPLED = "trained", "sampled"
_METRICS = {
    "graded": "graded",
    "correct": "correct",
    "clip_score": "CLIP score",
    "frechet": "Fréchet",
    "cmmd": "CMMD",
}


def report_shift(study: Shift, rows: Sequence[Row]) -> Report:
    """Tables, figures and verdict."""
    measured = [row for row in rows if not row["diverged"]]
    diverged = [row["cell"] for row in rows if row["diverged"]]
    card = study.card()
    return Report(
        setting=(
            f"The model `{study.model}`, trained at {card.resolution_px} px with the shift "
            f"α = {card.sampling.shift:g}, fine-tuned for {study.num_steps} steps of 16 pictures "
            f"at {study.resolution_px} px ({study.num_pictures:,} pictures of the world "
            f"`{study.world}`), where it starts from the model's averaged weights. The shift is "
            "the model's own times the multiplier, in training, validation and sampling alike. "
            f"Averaged weights, {study.setting}, {study.per_task} prompts a task. Seeds "
            f"{study.seeds}. Theory, sqrt(m/n) for n tokens before and m now, gives "
            f"{study.theory:g}."
        ),
        verdict=_verdict(study, _by_multiplier(measured, "graded"), diverged),
        tables=(
            _table("Shifted in training and sampling", _of(measured, TRAINED), study),
            _table("Shifted in sampling alone, trained with multiplier 1", _sweep(measured), study),
        ),
        plots=_figures(measured),
    )


def _of(rows: Sequence[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def _sweep(rows: Sequence[Row]) -> list[Row]:
    """The runs of multiplier 1 with every sampling shift, their own among them."""
    unshifted = [row for row in rows if row["multiplier"] == 1.0]
    extra = [row for row in unshifted if row["kind"] == SAMPLED and row["sampled"] != 1.0]
    return [*_of(unshifted, TRAINED), *extra]


def _values(rows: Sequence[Row], metric: str) -> dict[float, dict[int, float]]:
    """A metric by sampled multiplier and seed, multipliers ascending."""
    found: dict[float, dict[int, float]] = {}
    for row in sorted(rows, key=lambda row: (row["sampled"], row["seed"])):
        found.setdefault(row["sampled"], {})[row["seed"]] = float(row[metric])
    return found


def _by_multiplier(rows: Sequence[Row], metric: str) -> dict[str, dict[float, dict[int, float]]]:
    return {
        TRAINED: _values(_of(rows, TRAINED), metric),
        SAMPLED: _values(_sweep(rows), metric),
    }


def _table(title: str, rows: Sequence[Row], study: Shift) -> Table:
    by_metric = {metric: _values(rows, metric) for metric in _METRICS}
    alphas = {row["sampled"]: row["alpha"] for row in rows}
    return Table(
        title=title,
        header=("multiplier", "α", *_METRICS.values(), "graded, minus that of 1"),
        rows=tuple(
            (
                f"{multiplier:g}" + " (theory)" * (multiplier == study.theory),
                f"{alphas[multiplier]:g}",
                *(
                    str(spread_of(list(values[multiplier].values())))
                    for values in by_metric.values()
                ),
                str(_against_one(by_metric["graded"], multiplier) or ""),
            )
            for multiplier in by_metric["graded"]
        ),
        note="Mean ± standard deviation over seeds; differences seed by seed, 95 % intervals.",
    )


def _against_one(graded: dict[float, dict[int, float]], multiplier: float) -> Difference | None:
    """The score's difference to that of multiplier 1 over the seeds that both have."""
    own, one = graded.get(multiplier, {}), graded.get(1.0, {})
    shared = [seed for seed in own if seed in one]
    if multiplier == 1.0 or not shared:
        return None
    return paired_difference([own[seed] for seed in shared], [one[seed] for seed in shared])


def _verdict(
    study: Shift, graded: dict[str, dict[float, dict[int, float]]], diverged: Sequence[str]
) -> str:
    parts = [
        _finding(graded[TRAINED], study, what="Shifted in training and sampling"),
        _finding(graded[SAMPLED], study, what="Shifted in sampling alone"),
        "In the paper people strongly preferred sampling shifts above 1.5, with little difference "
        "among larger ones.",
        _plateau(graded[SAMPLED]),
    ]
    if diverged:
        parts.append(f"Diverged: {', '.join(diverged)}.")
    return " ".join(part for part in parts if part)


def _finding(graded: dict[float, dict[int, float]], study: Shift, *, what: str) -> str:
    if not graded:
        return f"{what}: no run finished."
    means = {m: spread_of(list(values.values())).mean for m, values in graded.items()}
    best = max(means, key=lambda multiplier: means[multiplier])
    text = f"{what}, multiplier {best:g} has the highest graded score, {means[best]:.3f}."
    # The multiplier of theory may not be among those that were run.
    near = min((m for m in means if m != 1.0), key=lambda m: abs(m - study.theory), default=None)
    difference = None if near is None else _against_one(graded, near)
    if near is None or difference is None:
        return text
    is_theory = ", that of theory," if near == study.theory else ""
    described = difference.describe(more="the shift helps", less="the shift harms")
    return f"{text} {near:g}{is_theory} minus 1 is {described}."


def _plateau(graded: dict[float, dict[int, float]]) -> str:
    """Whether sampling shifts above 1.5 beat those below, and differ among themselves."""
    high = {m: values for m, values in graded.items() if m >= 1.5}
    low = {m: values for m, values in graded.items() if m < 1.5}
    if not low or not high:
        return ""
    difference = seedwise_difference(_mean_by_seed(high), _mean_by_seed(low))
    if difference is None:
        return ""
    means = [spread_of(list(values.values())).mean for values in high.values()]
    described = difference.describe(more="they score more", less="they score less")
    return (
        f"Here sampling multipliers from 1.5 on, less those below, are {described}; they span "
        f"{max(means) - min(means):.3f} among themselves."
    )


def _mean_by_seed(graded: dict[float, dict[int, float]]) -> dict[int, float]:
    """The mean over multipliers of each seed that has all of them."""
    seeds = set[int].intersection(*(set(values) for values in graded.values()))
    return {s: spread_of([values[s] for values in graded.values()]).mean for s in sorted(seeds)}


def _figures(rows: Sequence[Row]) -> tuple[Plot, ...]:
    titles = {TRAINED: "training and sampling", SAMPLED: "sampling alone"}
    plots: list[Plot] = []
    for metric, label in (("graded", "graded score"), ("frechet", "Fréchet distance")):
        curves: dict[str, Curve] = {}
        for kind, values in _by_multiplier(rows, metric).items():
            spreads = {m: spread_of(list(by_seed.values())) for m, by_seed in values.items()}
            has_band = all(spread.num > 1 for spread in spreads.values())
            curves[titles[kind]] = Curve(
                xs=list(spreads),
                ys=[spread.mean for spread in spreads.values()],
                low=[s.mean - s.std for s in spreads.values()] if has_band else None,
                high=[s.mean + s.std for s in spreads.values()] if has_band else None,
            )
        plots.append(
            plot_curves(
                f"{metric}_over_shift.svg",
                curves,
                caption=f"{label.capitalize()} over the shift's multiplier, ± one standard "
                "deviation over seeds",
                x_label="multiplier of the model's own shift",
                y_label=label,
                is_x_log=True,
            )
        )
    return tuple(plots)
