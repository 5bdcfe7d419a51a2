"""`rectiflow finetune MODEL --data DIR`: pictures in, a fine-tuned model or a LoRA out."""

import argparse
from pathlib import Path

from rectiflow.cli.options import (
    Verbs,
    add_deterministic,
    add_seed,
    add_shard_over,
    add_verb,
    add_wandb,
    positive_number,
    whole_number,
)
from rectiflow.cli.released_options import add_released_options, read_load_settings

_DETAILS = """\
MODEL is released weights (a file, a folder, or on the Hub), the folder of a run, or a shipped model
such as "tiny". DIR holds images and captions as for `rectiflow encode`. The same command continues
a stopped run.

Without --lora all weights are trained, and RUN is a model; with --lora a LoRA is, in a file:
  rectiflow sample RUN PROMPT
  rectiflow sample MODEL PROMPT --lora RUN/model/lora.safetensors
On GPUs, one process for each:
  torchrun --nproc-per-node 8 -m rectiflow finetune MODEL --data DIR --out RUN
"""


_HERE = "here"


def add_parser(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "finetune",
        run,
        usage="rectiflow finetune MODEL --data DIR --out RUN [--lora RANK] [--max-steps N] "
        "[--learning-rate X] [--batch-size B] [--resolution PX] "
        "[--prior DIR | --prior-prompt TEXT --prior-count N] [--sample-prompt TEXT ...] [--seed S] "
        "[--plan [NxKIND]]",
        summary="fine-tune a model, or train a LoRA for it, on a folder of captioned images",
        details=_DETAILS,
    )
    parser.add_argument("model", metavar="MODEL", help="what to start from")
    for option, metavar, about in (
        ("--data", "DIR", "images and captions"),
        ("--out", "RUN", "run folder, new or existing"),
    ):
        parser.add_argument(option, type=Path, required=True, metavar=metavar, help=about)
    for option, kind, metavar, about in (
        ("--caption", str, "TEXT", "caption of the images that have none"),
        ("--lora", whole_number(1), "RANK", "train a LoRA of this rank, 4 to 64 is usual"),
        ("--max-steps", whole_number(1), "N", "stop after N steps (default: 1000)"),
        ("--learning-rate", positive_number, "X", "default: 1e-5, for a LoRA 1e-4"),
        ("--resolution", whole_number(1), "PX", "side of the squares (default: the model's own)"),
        ("--prior", Path, "DIR", "images of the class, to keep what the model knows of it"),
        ("--prior-prompt", str, "TEXT", "their caption, or what the model draws them for"),
        ("--prior-count", whole_number(1), "N", "let the model draw N of them"),
    ):
        parser.add_argument(option, type=kind, metavar=metavar, help=about)
    parser.add_argument(
        "--batch-size",
        type=whole_number(1),
        default=4,
        metavar="B",
        help="images in a step, those of the prior among them (default: 4)",
    )
    parser.add_argument(
        "--prior-weight",
        type=positive_number,
        default=1.0,
        metavar="X",
        help="how much the prior's images count (default: 1)",
    )
    parser.add_argument(
        "--sample-prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="draw it on the way, into RUN/samples; may be given repeatedly",
    )
    parser.add_argument(
        "--sample-every",
        type=whole_number(1),
        default=100,
        metavar="N",
        help="steps between sample pictures (default: 100)",
    )
    parser.add_argument(
        "--hold-base",
        choices=("fp32", "bf16"),
        default="fp32",
        help="what a LoRA's frozen model is held in; bf16 is half the memory (default: fp32)",
    )
    parser.add_argument(
        "--plan",
        nargs="?",
        const=_HERE,
        metavar="NxKIND",
        help="only say what it will need, on devices such as 1xH100 or (without NxKIND) here",
    )
    add_wandb(parser)
    add_shard_over(parser)
    add_deterministic(parser)
    add_seed(parser)
    add_released_options(parser)


def run(options: argparse.Namespace) -> int:
    """Trains; the exit code tells a stopped run from a finished one."""
    from rectiflow.distributed.world import open_world
    from rectiflow.models.model_folder import LORA_FILE
    from rectiflow.recipes.fine_tuning import fine_tune, plan_fine_tuning
    from rectiflow.recipes.fine_tuning_request import FineTuning
    from rectiflow.training.fine_tuning import LoraTraining
    from rectiflow.training.weights_and_biases import WeightsAndBiases

    lora = None
    if options.lora is not None:
        lora = LoraTraining(rank=options.lora, hold_base=options.hold_base)
    elif options.hold_base != "fp32":
        options.parser.error("--hold-base goes with --lora, whose base is frozen")
    request = FineTuning(
        model=options.model,
        data=options.data,
        out=options.out,
        caption=options.caption,
        lora=lora,
        max_steps=options.max_steps,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        resolution_px=options.resolution,
        prior=options.prior,
        prior_prompt=options.prior_prompt,
        prior_count=options.prior_count,
        prior_weight=options.prior_weight,
        sample_prompts=tuple(options.sample_prompt),
        sample_every=options.sample_every,
        seed=options.seed,
        load=read_load_settings(options),
    )
    if options.plan is not None:
        from rectiflow.training.plan_text import describe_plan
        from rectiflow.training.planner import Fleet

        fleet = None if options.plan == _HERE else Fleet.parse(options.plan)
        print(describe_plan(plan_fine_tuning(request, fleet, shard_over=options.shard_over)))
        return 0
    with open_world(shard_over=options.shard_over) as world:
        is_sending = options.wandb and world.is_first
        hooks = [WeightsAndBiases(options.wandb, options.out)] if is_sending else []
        result = fine_tune(request, hooks=hooks, world=world)
    if result.interrupted is not None:
        outcome = f"stopped at step {result.step} of {result.max_steps}; the same command continues"
    elif lora is None:
        outcome = f"{result.max_steps} steps done; the model lies in {result.model}"
    else:
        outcome = f"{result.max_steps} steps done; the LoRA lies in {result.model / LORA_FILE}"
    if world.is_first:
        print(outcome)
    return 0 if result.interrupted is None else 128 + result.interrupted
