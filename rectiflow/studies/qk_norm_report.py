"""What runs with and without QK-norm say: how far logits grew, what became of the loss.

Source: arXiv 2403.03206, section 5.3.2 and figure 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rectiflow.studies.bands import curve_over
from rectiflow.studies.comparison import sign_test, spread_of
from rectiflow.studies.plots import plot_curves
from rectiflow.studies.study import Plot, Report, Row, Table

if TYPE_CHECKING:
    from rectiflow.studies.qk_norm import QKNorm

#: A run is unstable when it diverged, or when its last held-out loss is above this many times its
#: least one.
UNSTABLE_FACTOR = 1.1
#: From this chance of the sign test on, nothing is said of stability. Fewer than six pairs that
#: differ cannot come below it.
SIGNIFICANCE = 0.05

Condition = tuple[str, float, bool]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one run; None where nothing was measured before it diverged."""

    condition: Condition
    seed: int
    is_diverged: bool
    final_loss: float | None
    least_loss: float | None
    largest_logits: tuple[float, ...]
    least_entropy: float | None

    @property
    def is_unstable(self) -> bool:
        if self.is_diverged or self.final_loss is None or self.least_loss is None:
            return True
        return self.final_loss > UNSTABLE_FACTOR * self.least_loss

    @property
    def largest_logit(self) -> float | None:
        """The largest of all blocks and looks."""
        return max(self.largest_logits, default=None)

    @property
    def largest_block(self) -> int:
        """The block of the largest logit, counted from 1."""
        return 1 + max(range(len(self.largest_logits)), key=self.largest_logits.__getitem__)


def condition_of(row: Row) -> Condition:
    """(precision, rate, whether queries and keys are normalised) of a row."""
    return row["precision"], row["rate"], row["qk_norm"]


def outcomes(rows: Sequence[Row]) -> list[Outcome]:
    """One outcome a run, in the grid's order."""
    return [
        _outcome([row for row in rows if row["cell"] == cell])
        for cell in dict.fromkeys(row["cell"] for row in rows)
    ]


def report_qk_norm(study: QKNorm, rows: Sequence[Row]) -> Report:
    """Tables, curves and verdict."""
    found = outcomes(rows)
    return Report(
        setting=_setting(study),
        verdict=_verdict(found),
        tables=(_outcome_table(found), _block_table(found)),
        plots=tuple(_plots(rows)),
    )


def _outcome(rows: Sequence[Row]) -> Outcome:
    losses = [row["raw_loss"] for row in rows if row.get("kind") == "validation"]
    attention = [row for row in rows if row.get("kind") == "attention"]
    is_diverged = any(row["diverged"] for row in rows)
    return Outcome(
        condition=condition_of(rows[0]),
        seed=rows[0]["seed"],
        is_diverged=is_diverged,
        # Of one that diverged only losses before that are known.
        final_loss=losses[-1] if losses and not is_diverged else None,
        least_loss=min(losses, default=None),
        largest_logits=tuple(map(max, zip(*(row["largest_logits"] for row in attention)))),
        least_entropy=min((min(row["entropies"]) for row in attention), default=None),
    )


def _by_condition(found: Sequence[Outcome]) -> dict[Condition, list[Outcome]]:
    return {
        condition: [outcome for outcome in found if outcome.condition == condition]
        for condition in dict.fromkeys(outcome.condition for outcome in found)
    }


def _named(condition: Condition) -> str:
    precision, rate, use_qk_norm = condition
    return f"{precision}, rate ×{rate:g}, {'with' if use_qk_norm else 'without'} QK-norm"


def _outcome_table(found: Sequence[Outcome]) -> Table:
    def measured(
        runs: Sequence[Outcome], value: Callable[[Outcome], float | None], digits: int
    ) -> str:
        values = [number for run in runs if (number := value(run)) is not None]
        return spread_of(values).text(digits) if values else ""

    return Table(
        title="What became of the runs",
        header=(
            "precision",
            "rate",
            "QK-norm",
            "last held-out loss",
            "least held-out loss",
            "largest logit",
            "least entropy",
            "diverged",
            "unstable",
        ),
        rows=tuple(
            (
                precision,
                f"×{rate:g}",
                "yes" if use_qk_norm else "no",
                measured(runs, lambda run: run.final_loss, 4),
                measured(runs, lambda run: run.least_loss, 4),
                measured(runs, lambda run: run.largest_logit, 1),
                measured(runs, lambda run: run.least_entropy, 3),
                f"{sum(run.is_diverged for run in runs)} of {len(runs)}",
                f"{sum(run.is_unstable for run in runs)} of {len(runs)}",
            )
            for (precision, rate, use_qk_norm), runs in _by_condition(found).items()
        ),
        note=(
            "Raw weights; rates are multiples of the recipe's. Logits and entropies (nats, mean "
            "over heads and queries of a block) are the extremes over all looks and blocks. "
            f"Unstable: diverged, or the last loss above {UNSTABLE_FACTOR:g} times the least."
        ),
    )


def _block_table(found: Sequence[Outcome]) -> Table:
    depth = max((len(outcome.largest_logits) for outcome in found), default=0)
    return Table(
        title="The largest logit by block (figure 5)",
        header=("run", *(f"block {block}" for block in range(1, depth + 1))),
        rows=tuple(
            (
                f"{_named(outcome.condition)}, seed {outcome.seed}",
                *(f"{logit:.1f}" for logit in outcome.largest_logits),
            )
            for outcome in found
            if outcome.largest_logits
        ),
    )


def _plots(rows: Sequence[Row]) -> list[Plot]:
    attention = [
        row | {"largest": max(row["largest_logits"]), "least": min(row["entropies"])}
        for row in rows
        if row.get("kind") == "attention"
    ]
    training = [row for row in rows if row.get("kind") == "training"]
    wanted = (
        (attention, "largest", "largest_logit.svg", "largest attention logit", True),
        (attention, "least", "least_entropy.svg", "least entropy of a block, nats", False),
        (training, "loss", "training_loss.svg", "training loss", True),
    )
    return [
        plot_curves(
            file,
            {
                _named(condition): curve_over(
                    [row for row in source if condition_of(row) == condition], x="step", y=column
                )
                for condition in dict.fromkeys(map(condition_of, source))
            },
            caption=f"{label[0].upper()}{label[1:]} over the run",
            x_label="steps",
            y_label=label,
            is_y_log=is_log,
        )
        for source, column, file, label, is_log in wanted
        if source
    ]


def _setting(study: QKNorm) -> str:
    rates = ", ".join(f"×{rate:g}" for rate in study.rates)
    return (
        f"MM-DiT of depth {study.depth} with and without RMSNorm of queries and keys; peak rates "
        f"{rates} of the small recipe's, precision {' and '.join(study.precisions)}, seeds "
        f"{', '.join(map(str, study.seeds))}; {study.num_steps} steps of 16 pictures on world "
        f"`{study.world}` ({study.num_pictures:,} pictures), gradients clipped as always. "
        "Attention of raw weights on held-out pictures before the first step and at "
        f"{study.num_looks} checkpoints. AdamW's eps is the recipe's in all runs; the paper lowers "
        "it along with the norm."
    )


def _verdict(found: Sequence[Outcome]) -> str:
    plain = [outcome for outcome in found if not outcome.condition[2]]
    normed = [outcome for outcome in found if outcome.condition[2]]
    return " ".join(
        sentence
        for sentence in (
            _stability(plain, normed),
            _logits(plain, normed),
            _where(plain),
            _cost(found),
        )
        if sentence
    )


def _stability(plain: Sequence[Outcome], normed: Sequence[Outcome]) -> str:
    without = sum(outcome.is_unstable for outcome in plain)
    with_norm = sum(outcome.is_unstable for outcome in normed)
    counts = (
        f"{without} of {len(plain)} runs without QK-norm became unstable "
        f"({sum(outcome.is_diverged for outcome in plain)} diverged), {with_norm} of "
        f"{len(normed)} with it ({sum(outcome.is_diverged for outcome in normed)} diverged)"
    )
    if without == with_norm == 0:
        return (
            f"No run became unstable ({counts}): these rates do not put the paper's claim of "
            "stability to test."
        )
    pairs = _pairs(plain, normed)
    num_cured = sum(bare.is_unstable and not with_it.is_unstable for bare, with_it in pairs)
    num_harmed = sum(with_it.is_unstable and not bare.is_unstable for bare, with_it in pairs)
    chance = sign_test(num_cured, num_harmed)
    counts += (
        f"; of {len(pairs)} pairs that differ in the norm alone {num_cured} became unstable only "
        f"without it and {num_harmed} only with it (exact sign test, p = {chance:.2g})"
    )
    if chance >= SIGNIFICANCE:
        return f"Whether QK-norm stabilises these runs leave open: {counts}."
    if num_cured > num_harmed:
        return f"QK-norm stabilises, as in the paper: {counts}."
    return f"QK-norm destabilises here, against the paper: {counts}."


def _pairs(plain: Sequence[Outcome], normed: Sequence[Outcome]) -> list[tuple[Outcome, Outcome]]:
    """Runs of one precision, rate and seed: without the norm, and with it."""
    partners = {(*outcome.condition[:2], outcome.seed): outcome for outcome in normed}
    return [
        (outcome, partners[key])
        for outcome in plain
        if (key := (*outcome.condition[:2], outcome.seed)) in partners
    ]


def _logits(plain: Sequence[Outcome], normed: Sequence[Outcome]) -> str:
    """The largest logits at the greatest rate, with and without."""
    rate = max(outcome.condition[1] for outcome in (*plain, *normed))

    def largest(found: Sequence[Outcome]) -> float | None:
        logits = [run.largest_logit for run in found if run.condition[1] == rate]
        return max((logit for logit in logits if logit is not None), default=None)

    without, with_norm = largest(plain), largest(normed)
    if without is None or with_norm is None:
        return ""
    if without > with_norm:
        return (
            f"At rate ×{rate:g} the largest logit reaches {without:.1f} without the norm, "
            f"{without / with_norm:.1f} times the {with_norm:.1f} with it."
        )
    return (
        f"At rate ×{rate:g} logits grow no larger without the norm ({without:.1f}) than with it "
        f"({with_norm:.1f}), unlike in the paper."
    )


def _where(plain: Sequence[Outcome]) -> str:
    """Whether the largest logits lie in the last blocks."""
    seen = [outcome for outcome in plain if outcome.largest_logits]
    if not seen:
        return ""
    late = sum(2 * outcome.largest_block > len(outcome.largest_logits) + 1 for outcome in seen)
    agreement = (
        "as in the paper" if 2 * late > len(seen) else "where the paper sees the last blocks"
    )
    return (
        f"In {late} of {len(seen)} runs without the norm the largest logit lies in the later half "
        f"of the blocks, {agreement}."
    )


def _cost(found: Sequence[Outcome]) -> str:
    """What the norm does to the loss at the least rate, where nothing needs it."""
    rate = min(outcome.condition[1] for outcome in found)
    losses = {
        use_qk_norm: [
            outcome.final_loss
            for outcome in found
            if outcome.condition[1:] == (rate, use_qk_norm) and outcome.final_loss is not None
        ]
        for use_qk_norm in (False, True)
    }
    if not (losses[False] and losses[True]):
        return ""
    return (
        f"At rate ×{rate:g} the last held-out loss is {spread_of(losses[True]).text(4)} with the "
        f"norm and {spread_of(losses[False]).text(4)} without."
    )
