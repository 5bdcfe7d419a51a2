"""`rectiflow train RECIPE`: trains on a latent store, or continues an existing run."""

import argparse
from dataclasses import replace
from pathlib import Path

from rectiflow.base.errors import UserError
from rectiflow.cli.options import (
    Verbs,
    add_deterministic,
    add_shard_over,
    add_verb,
    add_wandb,
    whole_number,
)

_DETAILS = """\
Every number and switch of the recipe is an option too:
  rectiflow train demo --data STORE --out RUN --optimizer.learning-rate 3e-4
`rectiflow train RECIPE --help` lists the fields. An existing RUN is continued.
On several processes or machines, with the same result:
  torchrun --nproc-per-node 2 -m rectiflow train RECIPE --data STORE --out RUN
"""


def add_parser(verbs: Verbs) -> None:
    """Adds the verb. Help is an option of our own: it depends on the recipe."""
    parser = add_verb(
        verbs,
        "train",
        run,
        usage="rectiflow train RECIPE --data STORE --out RUN [--max-steps N] "
        "[--wandb PROJECT] [--FIELD VALUE ...]",
        summary="train a recipe on a latent store, or continue a run",
        details=_DETAILS,
        takes_overrides=True,
        add_help=False,
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="name of a recipe")
    parser.add_argument("--data", type=Path, metavar="STORE", help="made by rectiflow encode")
    parser.add_argument("--out", type=Path, metavar="RUN", help="run folder, new or existing")
    parser.add_argument(
        "--parts", metavar="MODEL", help="has the autoencoder and text encoders of STORE, if moved"
    )
    parser.add_argument(
        "--max-steps", type=whole_number(1), metavar="N", help="stop after N steps instead"
    )
    parser.add_argument(
        "--formulation", metavar="NAME", help='another one, such as "rf/mode(1.29)" or "eps/linear"'
    )
    add_wandb(parser)
    add_shard_over(parser)
    add_deterministic(parser)
    parser.add_argument("-h", "--help", action="store_true", help="this, or RECIPE's fields")


def run(options: argparse.Namespace) -> int:
    """Resolves the recipe and trains it; the exit code tells a stopped run from a finished one."""
    if options.help and options.recipe is None:
        options.parser.print_help()
        return 0
    if options.overrides and not options.recipe:
        raise UserError(
            f"train does not know {options.overrides[0]!r} without a RECIPE, whose fields are "
            f"options too; usage: {options.parser.usage}"
        )
    if any(text.partition("=")[0] == "--max_steps" for text in options.overrides):
        raise UserError("write --max-steps, which a run that is continued follows too")
    for name, given in (
        ("RECIPE", options.recipe),
        ("--data", options.data or options.help),
        ("--out", options.out or options.help),
    ):
        if not given:
            raise UserError(f"train needs {name}; usage: {options.parser.usage}")

    from rectiflow.cli.overrides import apply_overrides, describe_fields
    from rectiflow.distributed.world import open_world
    from rectiflow.flow import parse_formulation
    from rectiflow.recipes.registry import recipe

    with open_world(shard_over=options.shard_over) as world:
        chosen = recipe(options.recipe)
        if options.formulation is not None:
            chosen = replace(chosen, formulation=parse_formulation(options.formulation))
        prog = f"rectiflow train {options.recipe}"
        if options.help:
            print(describe_fields(chosen, prog=prog))
            return 0
        chosen = apply_overrides(chosen, options.overrides, prog=prog)

        from rectiflow.recipes.training import train_on_store
        from rectiflow.training.weights_and_biases import WeightsAndBiases

        is_sending = options.wandb and world.is_first
        hooks = [WeightsAndBiases(options.wandb, options.out)] if is_sending else []
        result = train_on_store(
            chosen,
            options.data,
            options.out,
            parts=options.parts,
            max_steps=options.max_steps,
            hooks=hooks,
            world=world,
        )
        steps = result.max_steps
        outcome = f"{steps} steps done; the model lies in {result.model}"
        if result.interrupted is not None:
            outcome = f"stopped at step {result.step} of {steps}; the same command continues"
        if world.is_first:
            print(outcome)
        return 0 if result.interrupted is None else 128 + result.interrupted
