"""A plan's figures are those of the state that it plans, and follow from each other."""

from dataclasses import replace
from itertools import accumulate
from typing import Literal

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from training.fake_feed import tiny_recipe

from rectiflow.base.errors import ConfigError
from rectiflow.cli.main import main
from rectiflow.models.activations import Arithmetic, activations_of
from rectiflow.models.flops import InputSize, around_flops, forward_flops
from rectiflow.models.mmdit import MMDiTConfig, MMDiTXConfig
from rectiflow.training import planner
from rectiflow.training.alignment import RepresentationAlignment
from rectiflow.training.fine_tuning import LoraTraining
from rectiflow.training.meter import step_flops
from rectiflow.training.optimizers import AdamW, Muon
from rectiflow.training.plan_text import describe_plan
from rectiflow.training.planner import (
    Fleet,
    MemoryPlan,
    memory_of,
    plan_for,
    plan_here,
    random_batch,
)
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.routing import TokenRouting
from rectiflow.training.state import TrainState
from rectiflow.training.step import train_step

SIZE = InputSize(height=4, width=4, num_text=4)
SD3 = tiny_recipe(backbone=MMDiTConfig(depth=24), batch_size=512, precision="auto")
SD3_SIZE = InputSize(height=32, width=32, num_text=154)


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()])
def test_standing_memory_is_that_of_the_state(optimizer: AdamW | Muon) -> None:
    recipe = tiny_recipe(depth=2, optimizer=optimizer, precision="fp32")
    found = memory_of(recipe, SIZE, torch.float32, device_type="cpu")
    tensors = TrainState.start(recipe).tensors()
    held = {stem: sum(t.nbytes for t in each.values()) for stem, each in tensors.items()}
    assert (found.weights, found.ema) == (held["weights"], held["ema"])
    assert found.gradients == held["weights"]
    assert found.optimizer == held["optimizer"]
    kept = activations_of(recipe.backbone, SIZE, Arithmetic.of(torch.float32, "cpu"))
    assert found.activations == 4 * (kept.around + kept.blocks)
    assert found.peak == found.standing + max(
        found.weight_copies + found.activations + found.working, found.gradients + found.update
    )


def test_muons_stacks_are_whole_in_each_process() -> None:
    """Those of one shape at a time; what is computed of them is shared out, they are not."""
    recipe = tiny_recipe(depth=2, optimizer=Muon(), precision="fp32", batch_size=8)
    alone, shared = (
        memory_of(recipe, SIZE, torch.float32, device_type="cpu", num_devices=n) for n in (1, 8)
    )
    assert 0 < alone.update < 4 * _hidden_bytes(recipe)
    assert shared.update > 0.75 * alone.update
    assert shared.optimizer == pytest.approx(alone.optimizer / 8, rel=1e-3)
    plain = replace(recipe, optimizer=AdamW())
    assert memory_of(plain, SIZE, torch.float32, device_type="cpu").update == 0


def _hidden_bytes(recipe: TrainRecipe) -> int:
    backbone = TrainState.start(recipe).backbone
    matrices = [
        p for name, p in backbone.blocks.named_parameters() if p.ndim == 2 and "adaLN" not in name
    ]
    return sum(p.nbytes for p in matrices)


def test_gradients_stand_beside_the_next_micro_batch() -> None:
    recipe = tiny_recipe(
        depth=2, optimizer=AdamW(), precision="fp32", batch_size=6, micro_batch=3, max_steps=4
    )
    found = memory_of(recipe, SIZE, torch.float32, device_type="cpu")
    assert found.peak == found.standing + found.gradients + found.activations + found.working
    assert found.peak == pytest.approx(_held_bytes(recipe), rel=0.1)
    # A process that takes its share at once has none of them.
    shared = memory_of(recipe, SIZE, torch.float32, device_type="cpu", num_devices=2)
    assert shared.peak == shared.standing + max(
        shared.gradients, shared.weight_copies + shared.activations + shared.working
    )


def _held_bytes(recipe: TrainRecipe, size: InputSize = SIZE) -> int:
    """The most that tensors hold in a step: the state's, and what the step allocates."""
    state, batch = planner._first_state(recipe), random_batch(recipe, size)
    train_step(state, batch, recipe)
    for model in (state.backbone, *([state.aligner.projector] if state.aligner else [])):
        model.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        train_step(state, batch, recipe)
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    standing = sum(t.nbytes for tensors in state.tensors().values() for t in tensors.values())
    frozen = sum(p.nbytes for p in state.backbone.parameters() if not p.requires_grad)
    return standing + frozen + max(accumulate(num_bytes for _, num_bytes in changes))


def test_state_is_sharded_and_the_batch_is_shared_out() -> None:
    one = memory_of(SD3, SD3_SIZE, torch.bfloat16, device_type="cuda")
    eight = memory_of(SD3, SD3_SIZE, torch.bfloat16, device_type="cuda", num_devices=8)
    for name in ("weights", "ema", "optimizer", "gradients", "activations"):
        assert getattr(eight, name) == pytest.approx(getattr(one, name) / 8, rel=1e-6)
    # A block's gradients are whole until all devices have theirs, in 16 bits and as float32 sums.
    block = one.weight_copies / 2 / 24
    assert eight.working == pytest.approx(one.working / 8 + (2 + 4) * block, rel=0.02)
    # Of 24 blocks two are gathered at a time.
    assert eight.weight_copies == pytest.approx(one.weight_copies / 12, rel=0.1)
    # 2.03 billion parameters of four bytes, and twice that for AdamW.
    assert one.weights == 4 * 2_028_328_000


def test_recompute_takes_time_for_memory() -> None:
    plans = [
        plan_for(replace(SD3, recompute=what), SD3_SIZE, Fleet.parse("8xH100"))
        for what in ("none", "products", "blocks")
    ]
    whole, products, blocks = (plan.memory for plan in plans)
    assert whole.activations > 1.5 * products.activations > 6 * blocks.activations
    assert whole.peak > products.peak > blocks.peak
    assert whole.working < products.working < blocks.working < whole.activations / 8
    # The model's own operations are the same; a block's forward pass is one of three.
    assert len({plan.flops_per_step for plan in plans}) == 1
    assert plans[0].step_s == plans[1].step_s
    share = 1 - around_flops(SD3.backbone, SD3_SIZE) / forward_flops(SD3.backbone, SD3_SIZE)
    assert plans[2].step_s == pytest.approx(plans[0].step_s * (1 + share / 3))
    shown = [describe_plan(plan).partition(" at most ")[2] for plan in plans]
    for text, what in zip(shown, ("nothing", "all but products", "blocks"), strict=True):
        assert text.startswith(f"on each device, all state sharded, {what} recomputed")


def test_time_and_cost_follow_from_operations() -> None:
    fleet = Fleet.parse("8xH100")
    plan = plan_for(SD3, SD3_SIZE, fleet, mfu=0.4)
    assert plan.flops_per_step == 512 * 3 * forward_flops(SD3.backbone, SD3_SIZE)
    assert plan.step_s == pytest.approx(plan.flops_per_step / (8 * 0.4 * 989.4e12))
    # 1.75 TFLOP an image, 226 images a second and device: the project's target at 40 %.
    assert 512 / plan.step_s / 8 == pytest.approx(226, rel=0.02)
    twice = plan_for(SD3, SD3_SIZE, fleet, mfu=0.8)
    assert twice.total_s == pytest.approx(plan.total_s / 2)
    assert plan.total_s == pytest.approx(12 * plan.step_s + 2 * plan.validation_s)
    assert plan.num_samples == 12 * 512
    wide = plan_for(replace(SD3, precision="fp32"), SD3_SIZE, fleet)
    assert wide.dtype == torch.float32
    assert wide.step_s > 10 * plan.step_s
    text = describe_plan(plan, price_per_hour=2.5)
    assert "8 × H100 in bf16" in text
    assert "an assumed 40% of 989 dense TFLOP/s a device" in text
    assert f"cost         {plan.total_s / 3600 * 8 * 2.5:,.2f} = " in text


def test_a_plan_says_whether_it_fits() -> None:
    tight = plan_for(SD3, SD3_SIZE, Fleet.parse("4090"))
    assert tight.does_fit is False
    assert "does not fit into 24.000 GB: take more devices" in describe_plan(tight)
    roomy = plan_for(replace(SD3, batch_size=128), SD3_SIZE, Fleet.parse("8xB200"))
    assert roomy.does_fit is True
    assert "fits: " in describe_plan(roomy)


def test_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "time_steps", lambda *_: 0.5)
    recipe = tiny_recipe(precision="fp32")
    plan = plan_here(recipe, SIZE)
    assert (plan.step_s, plan.does_fit) == (0.5, None)
    # 2 weights, 7 levels and 4 samples forward, against 4 samples three times forward.
    assert plan.validation_s == pytest.approx(0.5 * 2 * 7 / 3)
    assert "on this machine in fp32" in describe_plan(plan)


def test_a_step_is_timed_on_a_batch_of_the_recipes_shapes() -> None:
    recipe = tiny_recipe(
        backbone=MMDiTConfig(depth=1, context_dim=32, pooled_dim=24, num_clip_tokens=2),
        precision="fp32",
    )
    plan = plan_here(recipe, SIZE, seconds=0.0)
    assert 0 < plan.step_s < 60


@pytest.mark.parametrize(
    ("devices", "text"),
    [
        ("8xV100", "unknown device 'V100'; known are H100,"),
        ("", "devices are ''; give a number and a kind, such as 8xH100"),
        ("3xH100", "batch_size 512 does not divide among 3 processes; start a number"),
    ],
)
def test_devices_that_cannot_be_are_refused(devices: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        plan_for(SD3, SD3_SIZE, Fleet.parse(devices))


WIDE = MMDiTConfig(depth=4, width=128, context_dim=32, pooled_dim=24, position_side=16, base_side=4)
WIDE_X = MMDiTXConfig(
    depth=4,
    width=128,
    context_dim=32,
    pooled_dim=24,
    position_side=16,
    base_side=4,
    num_dual_blocks=2,
)
MANY = InputSize(height=16, width=16, num_text=8)


def on_cpu(recipe: TrainRecipe) -> MemoryPlan:
    return memory_of(recipe, MANY, torch.float32, device_type="cpu")


@pytest.mark.parametrize("backbone", [WIDE, WIDE_X], ids=["mmdit", "mmdit-x"])
def test_tokens_that_pass_by_blocks_take_no_memory_there(backbone: MMDiTConfig) -> None:
    recipe = tiny_recipe(backbone=backbone, optimizer=AdamW(), precision="fp32", batch_size=8)
    routed = replace(recipe, routing=TokenRouting(share=0.5, first=0, last=2))
    plain, found = on_cpu(recipe), on_cpu(routed)
    assert found.standing == plain.standing
    assert 0.5 * plain.activations < found.activations < 0.75 * plain.activations
    assert found.peak == pytest.approx(_held_bytes(routed, MANY), rel=0.1)
    for what in ("products", "blocks"):
        some = on_cpu(replace(routed, recompute=what))
        assert some.activations < on_cpu(replace(recipe, recompute=what)).activations


def test_an_alignments_projector_is_planned() -> None:
    recipe = tiny_recipe(backbone=WIDE, optimizer=Muon(), precision="fp32", batch_size=8)
    aligned = replace(recipe, alignment=RepresentationAlignment(weight=0.5, block=1))
    plain, found = on_cpu(recipe), on_cpu(aligned)
    tensors = TrainState.start(aligned).tensors()
    held = {stem: sum(t.nbytes for t in each.values()) for stem, each in tensors.items()}
    assert found.weights == held["weights"] + held["projector"]
    assert found.optimizer == held["optimizer"] + held["projector_optimizer"]
    assert found.gradients == found.weights
    assert found.ema == plain.ema == held["ema"]
    assert found.activations > plain.activations
    assert found.peak == pytest.approx(_held_bytes(aligned, MANY), rel=0.1)


@pytest.mark.parametrize("hold_base", ["fp32", "bf16"])
def test_only_a_loras_updates_have_gradients_averages_and_moments(
    hold_base: Literal["fp32", "bf16"],
) -> None:
    recipe = tiny_recipe(
        backbone=WIDE,
        optimizer=AdamW(),
        precision="fp32",
        batch_size=8,
        start_from="another",
        lora=LoraTraining(rank=4, hold_base=hold_base),
    )
    found = on_cpu(recipe)
    state = planner._first_state(recipe)
    updates = sum(p.nbytes for p in state.backbone.parameters() if p.requires_grad)
    assert found.weights == sum(p.nbytes for p in state.backbone.parameters())
    assert found.ema == found.gradients == updates
    assert found.optimizer == sum(t.nbytes for t in state.optimizer.state().values())
    assert found.standing < 0.6 * on_cpu(replace(recipe, lora=None)).standing
    assert found.peak == pytest.approx(_held_bytes(recipe, MANY), rel=0.1)
    # Frozen weights need no gradients: a third of the operations.
    assert 3 * step_flops(recipe, SIZE) == 2 * step_flops(replace(recipe, lora=None), SIZE)


def test_a_lora_is_planned_and_timed_too() -> None:
    recipe = replace(SD3, start_from="sd3", lora=LoraTraining(rank=4))
    text = describe_plan(plan_for(recipe, SD3_SIZE, Fleet.parse("H100")))
    assert "FLOP a step (two forward passes), " in text
    tiny = tiny_recipe(precision="fp32", start_from="another", lora=LoraTraining(rank=4))
    assert 0 < plan_here(tiny, SIZE, seconds=0.0).step_s < 60


def test_further_copies_of_the_state_are_whole() -> None:
    fleet = Fleet.parse("8xH100")
    all_of_them, two, one = (
        plan_for(SD3, SD3_SIZE, fleet, shard_over=number) for number in (None, 2, 1)
    )
    for name in ("weights", "ema", "optimizer", "gradients"):
        found = getattr(all_of_them.memory, name)
        assert getattr(two.memory, name) == pytest.approx(4 * found, rel=1e-6)
        assert getattr(one.memory, name) == pytest.approx(8 * found, rel=1e-6)
    assert two.memory.activations == all_of_them.memory.activations
    assert two.step_s == all_of_them.step_s
    assert " at most on each device, all state sharded, " in describe_plan(all_of_them)
    assert " at most on each device, state sharded over 2 of 8, " in describe_plan(two)
    with pytest.raises(ConfigError, match="--shard-over 3 does not divide the 8 devices; give"):
        plan_for(SD3, SD3_SIZE, fleet, shard_over=3)


def test_one_text_token_is_too_few() -> None:
    with pytest.raises(ConfigError, match="1 text tokens; CLIP and T5 have at least one each"):
        random_batch(SD3, InputSize(height=4, width=4, num_text=1))


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = "plan mmdit-d4 --devices 2xH200 --price-per-hour 3 --batch-size 32 --text-tokens 154"
    assert main([*line.split(), "--shard-over", "1"]) == 0
    out = capsys.readouterr().out
    assert "mmdit-d4: MM-DiT, depth 4, width 256" in out
    assert "samples: latents of 8×8, 154 text tokens, 32 a step, 640,000 in 20,000 steps" in out
    assert "× 2 × 3 an hour" in out
    assert "state sharded over 1 of 2" in out


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("demo --mfu 0.5", "--mfu is assumed of --devices; this machine is measured"),
        ("demo --shard-over 2", "--shard-over is for --devices; this machine is planned as one"),
        ("demo --devices 4xH100 --shard-over 3", "--shard-over 3 does not divide the 4 devices"),
        ("demo --devices H100 --mfu 40", "--mfu is 40; it is a share of the peak, at most 1"),
        ("demo --devices H100 --latent-side 9", "latents of 9×9 do not divide into patches of 2"),
        ("demo --data store --latent-side 8", "--data tells the sizes; leave out --latent-side"),
        ("demo --data store", "store"),
        ("demo --devices H100 --batchsize 3", "Unrecognized options: --batchsize"),
        ("demo --price-per-hour free", "expected a number above 0, got 'free'"),
    ],
)
def test_mistakes_are_one_line(
    line: str, text: str, capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *line.split()]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert text in err
