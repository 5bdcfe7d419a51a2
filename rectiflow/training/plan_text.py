"""A plan in words, with every assumption that its numbers rest on."""

from __future__ import annotations

import torch

from rectiflow.training.meter import pace, scaled
from rectiflow.training.planner import Plan

_RECOMPUTED = {
    "none": "nothing recomputed",
    "products": "all but products recomputed",
    "blocks": "blocks recomputed",
}


def describe_plan(plan: Plan, *, price_per_hour: float | None = None) -> str:
    """Lines for a terminal; `price_per_hour` is that of one device (or of this machine)."""
    recipe, size = plan.recipe, plan.size
    number = 1 if plan.fleet is None else plan.fleet.number
    where = "this machine" if plan.fleet is None else f"{number} × {plan.fleet.kind.name}"
    config = recipe.backbone
    name = "bf16" if plan.dtype == torch.bfloat16 else "fp32"
    hours = plan.total_s / 3600.0
    # A frozen model has no gradients of its weights.
    passes = "three" if recipe.lora is None else "two"
    lines = [
        f"{recipe.name}: {config.title}, depth {config.depth}, width {config.hidden_dim}, "
        f"{scaled(plan.num_parameters)}parameters, on {where} in {name}",
        f"samples: latents of {size.height}×{size.width}, {size.num_text} text tokens, "
        f"{recipe.batch_size} a step, {plan.num_samples:,} in {recipe.max_steps:,} steps",
        "",
        *_memory(plan, number),
        "",
        f"operations   {scaled(plan.flops_per_step)}FLOP a step ({passes} forward passes), "
        f"{scaled(plan.flops_per_step * recipe.max_steps)}FLOP in all",
        f"step         {_duration(plan.step_s)}, {pace(recipe.batch_size / plan.step_s)} images/s: "
        f"{plan.basis}",
        f"whole run    {_duration(plan.total_s)} with validations, without checkpoints and sample "
        "pictures",
    ]
    if price_per_hour is not None:
        cost = hours * number * price_per_hour
        lines.append(
            f"cost         {cost:,.2f} = {hours:,.2f} h × {number} × {price_per_hour:g} an hour"
        )
    return "\n".join(lines)


def _memory(plan: Plan, number: int) -> list[str]:
    memory = plan.memory
    each = " on each device, all state sharded" if number > 1 else ""
    if plan.num_parts < number:
        each = f" on each device, state sharded over {plan.num_parts} of {number}"
    recomputed = _RECOMPUTED[plan.recipe.recompute]
    lora = plan.recipe.lora
    is_in_bf16 = lora is not None and lora.base_dtype == torch.bfloat16
    held_in = "bf16, LoRA float32" if is_in_bf16 else "float32 master"
    lines = [f"memory       {_gb(memory.peak)} at most{each}, {recomputed}"]
    lines += [
        f"  {name:<26}{_gb(value):>11}"
        for name, value in (
            (f"weights ({held_in})", memory.weights),
            ("averaged weights", memory.ema),
            ("optimizer", memory.optimizer),
            ("gradients", memory.gradients),
            ("weights in 16 bits", memory.weight_copies),
            ("kept for the backward pass", memory.activations),
            ("working memory of a block", memory.working),
            ("working memory of the step", memory.update),
        )
    ]
    if plan.fleet is not None:
        limit = plan.fleet.kind.memory_bytes
        if plan.does_fit:
            lines.append(f"  fits: {memory.peak / limit:.0%} of {_gb(limit)}")
        else:
            lines.append(
                f"  does not fit into {_gb(limit)}: take more devices, a smaller micro_batch or "
                "batch, recompute, or a smaller backbone"
            )
    return lines


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.3f} GB"


def _duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for size, unit in ((86_400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"
