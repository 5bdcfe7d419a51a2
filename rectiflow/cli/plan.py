"""`rectiflow plan RECIPE`: memory, time, operations and cost of a run before it starts."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rectiflow.base.errors import UserError
from rectiflow.cli.options import (
    Verbs,
    add_shard_over,
    add_verb,
    positive_number,
    whole_number,
)

if TYPE_CHECKING:
    from rectiflow.models.flops import InputSize
    from rectiflow.training.recipe import TrainRecipe

_DETAILS = """\
With --devices, time follows from the model's operations and an assumed share of the devices' peak
(--mfu); without, this machine's training step is timed on random numbers for ten seconds. Memory is
computed from the recipe either way. Every number and switch of the recipe is an option too:
  rectiflow plan sd3-d24 --devices 8xH100 --price-per-hour 2.5 --batch-size 1024 --micro-batch 32
A fine-tuning is planned by its own command:
  rectiflow finetune MODEL --data DIR --out RUN --lora 16 --plan 1xH100
"""

#: Text tokens of either world: 16 of CLIP and 16 of T5; 77 and 77 of T5-XXL's width, as SD3's.
_EMBEDDED_TOKENS, _RELEASED_TOKENS, _RELEASED_WIDTH = 32, 154, 4096


def add_parser(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "plan",
        run,
        usage="rectiflow plan RECIPE [--devices 8xH100] [--price-per-hour X] [--shard-over N] "
        "[--data STORE] [--FIELD VALUE ...]",
        summary="say what a training run will need: memory, time, operations, cost",
        details=_DETAILS,
        takes_overrides=True,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="name of a recipe")
    parser.add_argument("--devices", metavar="NxKIND", help="such as 8xH100 (default: this CPU)")
    add_shard_over(parser)
    parser.add_argument(
        "--price-per-hour", type=positive_number, metavar="X", help="of one device, any currency"
    )
    parser.add_argument(
        "--mfu",
        type=positive_number,
        metavar="SHARE",
        help="share of the devices' peak to assume, at most 1 (default: 0.4)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="STORE",
        help="take sizes from the samples of a store, the largest of several",
    )
    parser.add_argument(
        "--latent-side",
        type=whole_number(1),
        metavar="N",
        help="side of the latents (default: that of the recipe's position grid)",
    )
    parser.add_argument(
        "--text-tokens",
        type=whole_number(2),
        metavar="N",
        help="text tokens (default: 32 as in the embedded world; 154 with SD3's widths)",
    )


def run(options: argparse.Namespace) -> None:
    """Prints the plan."""
    if options.devices is None and options.mfu is not None:
        raise UserError("--mfu is assumed of --devices; this machine is measured")
    if options.devices is None and options.shard_over not in (None, 1):
        raise UserError("--shard-over is for --devices; this machine is planned as one process")
    if options.mfu is not None and options.mfu > 1.0:
        raise UserError(f"--mfu is {options.mfu:g}; it is a share of the peak, at most 1")

    from rectiflow.cli.overrides import apply_overrides
    from rectiflow.recipes.registry import recipe
    from rectiflow.training.plan_text import describe_plan
    from rectiflow.training.planner import ASSUMED_MFU, Fleet, plan_for, plan_here

    prog = f"rectiflow plan {options.recipe}"
    chosen = apply_overrides(recipe(options.recipe), options.overrides, prog=prog)
    size = _size(options, chosen)
    if options.devices is None:
        plan = plan_here(chosen, size)
    else:
        plan = plan_for(
            chosen,
            size,
            Fleet.parse(options.devices),
            mfu=options.mfu or ASSUMED_MFU,
            shard_over=options.shard_over,
        )
    print(describe_plan(plan, price_per_hour=options.price_per_hour))


def _size(options: argparse.Namespace, recipe: "TrainRecipe") -> "InputSize":
    """The store's samples, or what the options say."""
    from rectiflow.models.flops import InputSize

    if options.data is not None:
        if options.latent_side is not None or options.text_tokens is not None:
            raise UserError("--data tells the sizes; leave out --latent-side and --text-tokens")
        from rectiflow.training.feed import open_feed
        from rectiflow.training.planner import largest_input

        return largest_input(open_feed(options.data, recipe))
    backbone = recipe.backbone
    side = options.latent_side or backbone.base_side * backbone.patch_size
    usual = _RELEASED_TOKENS if backbone.context_dim == _RELEASED_WIDTH else _EMBEDDED_TOKENS
    return InputSize(height=side, width=side, num_text=options.text_tokens or usual)
