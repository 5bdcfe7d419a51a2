"""What the backbones' numbers say: loss curves, final metrics, and the paper's order put to test.

The paper claims an order. Each pair of it is tested by its difference seed by seed, so that the
verdict says what is decided, which way, and what the seeds leave open.
Source: arXiv 2403.03206, section 5.2.3 and figure 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from rectiflow.studies.bands import curve_over
from rectiflow.studies.comparison import Difference, seedwise_difference, spread_of
from rectiflow.studies.plots import plot_curves
from rectiflow.studies.study import Plot, Report, Row, Table

if TYPE_CHECKING:
    from rectiflow.studies.backbones import Backbones

REFERENCE = "mmdit"
#: What is held equal to the reference's; the reference's own runs count for both.
MATCHES = ("flops", "parameters")
BOTH = "both"
TITLES = {
    "dit": "DiT",
    "uvit": "UViT",
    "crossdit": "CrossDiT",
    "mmdit": "MM-DiT",
    "mmdit3": "MM-DiT, 3 sets",
}
#: The paper's order, worst first, and what it found slightly better than the best of them.
PAPER_ORDER = ("dit", "uvit", "crossdit", "mmdit")
THREE_SETS = "mmdit3"


@dataclass(frozen=True, kw_only=True)
class _Metric:
    """A measured column: of which rows, how it is called, and whether more of it is better."""

    column: str
    title: str
    is_more_better: bool
    kind: str = "samples"
    digits: int = 3


METRICS = (
    _Metric(
        column="ema_loss",
        title="held-out loss",
        is_more_better=False,
        kind="validation",
        digits=4,
    ),
    _Metric(column="clip_score", title="CLIP score", is_more_better=True),
    _Metric(column="frechet", title="Fréchet distance", is_more_better=False),
    _Metric(column="cmmd", title="CMMD", is_more_better=False),
    _Metric(column="graded", title="graded", is_more_better=True),
)
#: Those of the paper's figure.
PAPER_METRICS = METRICS[:3]

#: Final values by backbone and seed.
Values = Mapping[str, Mapping[int, float]]


def of_match(rows: Sequence[Row], matched: str) -> list[Row]:
    """The rows of one comparison that were measured."""
    return [row for row in rows if not row["diverged"] and row["matched"] in (matched, BOTH)]


def final_values(rows: Sequence[Row], metric: _Metric) -> dict[str, dict[int, float]]:
    """The metric after the last step, by backbone and seed."""
    found: dict[str, dict[int, float]] = {}
    for row in sorted(
        (row for row in rows if row.get("kind") == metric.kind), key=lambda row: row["step"]
    ):
        found.setdefault(row["backbone"], {})[row["seed"]] = row[metric.column]
    return found


def order_by(values: Values, metric: _Metric) -> list[str]:
    """Backbones by their mean over the seeds that all of them have, worst first.

    By the mean over whatever seeds each has where there is no such seed.
    """
    common = set[int].intersection(*(set(seeds) for seeds in values.values()))
    means = {
        name: spread_of([v for seed, v in seeds.items() if seed in common or not common]).mean
        for name, seeds in values.items()
    }
    return sorted(means, key=lambda name: means[name] if metric.is_more_better else -means[name])


def advantage(values: Values, better: str, worse: str, metric: _Metric) -> Difference | None:
    """How much better one is than another, seed by seed; None where they share no seed."""
    first, second = values.get(better, {}), values.get(worse, {})
    if not metric.is_more_better:
        first, second = second, first
    return seedwise_difference(first, second)


def report_backbones(study: Backbones, rows: Sequence[Row]) -> Report:
    """Tables, curves and verdict."""
    tables, plots = [_size_table(rows)], list[Plot]()
    for matched in MATCHES:
        found = of_match(rows, matched)
        if len({row["backbone"] for row in found}) > 1:
            tables += [_final_table(found, matched), _pair_table(found, matched)]
            plots.append(_curves(found, matched))
    return Report(
        setting=_setting(study, rows),
        verdict=_verdict(rows),
        tables=tuple(tables),
        plots=tuple(plots),
    )


def _size_table(rows: Sequence[Row]) -> Table:
    sizes = {(row["matched"], row["backbone"]): row for row in rows if row.get("kind") == "size"}
    reference = next((row for (_, name), row in sizes.items() if name == REFERENCE), None)

    def beside(row: Row, column: str) -> str:
        return f" ({row[column] / reference[column]:.2f}×)" if reference else ""

    return Table(
        title="Sizes",
        header=("backbone", "matched by", "depth", "width", "parameters", "FLOPs, forward"),
        rows=tuple(
            (
                TITLES[name],
                "reference" if matched == BOTH else matched,
                str(row["depth"]),
                str(row["width"]),
                f"{row['parameters'] / 1e6:.2f} M{beside(row, 'parameters')}",
                f"{row['forward_flops'] / 1e6:.1f} M{beside(row, 'forward_flops')}",
            )
            for (matched, name), row in sizes.items()
        ),
        note="FLOPs of one picture with its prompt, counted from the shapes.",
    )


def _final_table(rows: Sequence[Row], matched: str) -> Table:
    values = {metric.title: final_values(rows, metric) for metric in METRICS}
    names = [name for name in TITLES if any(name in found for found in values.values())]
    return Table(
        title=f"After the last step, at equal {_equal(matched)}",
        header=("backbone", "seeds", *values),
        rows=tuple(
            (
                TITLES[name],
                str(max(len(found.get(name, {})) for found in values.values())),
                *(
                    spread_of(list(found[name].values())).text(metric.digits)
                    if name in (found := values[metric.title])
                    else ""
                    for metric in METRICS
                ),
            )
            for name in names
        ),
        note="EMA weights; mean ± standard deviation over seeds.",
    )


def _pair_table(rows: Sequence[Row], matched: str) -> Table:
    values = [final_values(rows, metric) for metric in METRICS]
    pairs = [*combinations(PAPER_ORDER, 2), (REFERENCE, THREE_SETS)]
    lines: list[tuple[str, ...]] = []
    for worse, better in pairs:
        differences = [
            advantage(found, better, worse, metric)
            for found, metric in zip(values, METRICS, strict=True)
        ]
        if any(differences):
            lines.append(
                (
                    f"{TITLES[better]} over {TITLES[worse]}",
                    *(
                        _marked(difference, metric.digits) if difference else ""
                        for difference, metric in zip(differences, METRICS, strict=True)
                    ),
                )
            )
    return Table(
        title=f"The paper's order, pair by pair, at equal {_equal(matched)}",
        header=("advantage of", *(metric.title for metric in METRICS)),
        rows=tuple(lines),
        note=(
            "Paired differences over seeds with their 95 % interval (Student's), turned so that "
            "positive agrees with the paper; bold where the interval leaves out zero."
        ),
    )


def _marked(difference: Difference, digits: int) -> str:
    text = difference.text(digits)
    return f"**{text}**" if difference.is_clear else text


def _curves(rows: Sequence[Row], matched: str) -> Plot:
    validations = [row for row in rows if row.get("kind") == "validation"]
    return plot_curves(
        f"loss_at_equal_{matched}.svg",
        {
            title: curve_over(found, x="step", y="ema_loss")
            for name, title in TITLES.items()
            if (found := [row for row in validations if row["backbone"] == name])
        },
        caption=(
            f"Held-out loss of EMA weights at equal {_equal(matched)} (figure 4); bands are one "
            "standard deviation over seeds"
        ),
        x_label="steps",
        y_label="held-out loss",
    )


def _equal(matched: str) -> str:
    return "FLOPs" if matched == "flops" else matched


def _setting(study: Backbones, rows: Sequence[Row]) -> str:
    samples = next((row for row in rows if row.get("kind") == "samples"), None)
    pictures = f" {samples['num_pictures']} pictures" if samples else ""
    return (
        f"The reference is an MM-DiT of depth {study.depth} with two sets of weights; the others "
        f"have its forward FLOPs (seeds {_listed(study.seeds)}) or its parameters (seeds "
        f"{_listed(study.parameter_seeds)}). {study.num_steps} steps of 16 pictures on world "
        f"`{study.world}` ({study.num_pictures:,} pictures); the peak rate is the small recipe's "
        "over each backbone's width, tuned for the MM-DiT and for none of the others. At the last "
        f"step{pictures} by EMA weights, {study.setting}, CLIP features of the embedded image "
        "tower."
    )


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _verdict(rows: Sequence[Row]) -> str:
    parts = [
        sentence
        for matched in MATCHES
        for sentence in _verdict_of(of_match(rows, matched), matched)
    ]
    diverged = sorted({TITLES[row["backbone"]] for row in rows if row["diverged"]})
    parts.append(f"Runs of {', '.join(diverged)} diverged." if diverged else "No run diverged.")
    return " ".join(parts)


def _verdict_of(rows: Sequence[Row], matched: str) -> list[str]:
    loss = METRICS[0]
    values = final_values(rows, loss)
    if len(values) < 2:
        return []
    ours = [name for name in order_by(values, loss) if name in PAPER_ORDER]
    theirs = [name for name in PAPER_ORDER if name in ours]
    agreement = "the paper's order" if ours == theirs else f"where the paper has {_chain(theirs)}"
    parts = [f"At equal {_equal(matched)}, held-out loss orders {_chain(ours)}, {agreement}."]
    parts += [_tally(rows, metric) for metric in PAPER_METRICS]
    three = advantage(values, THREE_SETS, REFERENCE, loss)
    if three is not None:
        size = f"by {three.text(loss.digits)} in loss"
        if not three.is_clear:
            parts.append(f"Whether three sets beat two stays open ({size}).")
        else:
            parts.append(f"Three sets {'beat' if three.mean > 0 else 'lose to'} two {size}.")
    parts.append(_early(rows))
    return parts


def _tally(rows: Sequence[Row], metric: _Metric) -> str:
    values = final_values(rows, metric)
    differences = [
        difference
        for worse, better in combinations(PAPER_ORDER, 2)
        if (difference := advantage(values, better, worse, metric)) is not None
    ]
    agreeing = sum(d.is_clear and d.mean > 0 for d in differences)
    opposed = sum(d.is_clear and d.mean < 0 for d in differences)
    leaning = sum(not d.is_clear and d.mean > 0 for d in differences)
    num_open = len(differences) - agreeing - opposed
    return (
        f"By {metric.title}, {agreeing} of the order's {len(differences)} pairs are decided as in "
        f"the paper, {opposed} against it, each by its own 95 % interval; {num_open} stay open "
        f"over the seeds, {leaning} of them leaning its way."
    )


def _early(rows: Sequence[Row]) -> str:
    """Who leads at the first look: the paper saw UViT learn fastest early."""
    validations = [row for row in rows if row.get("kind") == "validation"]
    first = min(row["step"] for row in validations)
    early = final_values([row for row in validations if row["step"] == first], METRICS[0])
    leader = order_by(early, METRICS[0])[-1]
    comparison = "as in the paper" if leader == "uvit" else "where the paper saw UViT"
    return f"At the first look, after {first} steps, {TITLES[leader]} leads, {comparison}."


def _chain(names: Sequence[str]) -> str:
    return " < ".join(TITLES[name] for name in names)
