import math
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from training.fake_feed import FEATURE_DIM, tiny_recipe

from rectiflow.base.config import from_json, to_json
from rectiflow.base.errors import ConfigError
from rectiflow.cli.overrides import apply_overrides
from rectiflow.models.backbones import build_backbone
from rectiflow.models.baselines.crossdit import CrossDiTConfig
from rectiflow.models.baselines.uvit import UViTConfig
from rectiflow.models.mmdit import MMDiT, MMDiTConfig
from rectiflow.training.alignment import RepresentationAlignment
from rectiflow.training.newton_schulz import QUINTIC, orthogonalize
from rectiflow.training.optimizers import (
    AdamW,
    Muon,
    Optimizer,
    hidden_matrices,
    is_decayed,
    rate_of,
    trainable,
)
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.state import TrainState

CONFIG = MMDiTConfig(depth=2, context_dim=32, pooled_dim=24, position_side=8, base_side=4)


class Toy(nn.Module):
    """Backbone-shaped: a `blocks` part with matrices, and something before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 24)
        self.blocks = nn.ModuleList([nn.Linear(24, 64), nn.Linear(64, 24), nn.Linear(24, 24)])
        self.norm = nn.LayerNorm(24)
        self.places = nn.Embedding(3, 24)


def model(seed: int = 0) -> MMDiT:
    backbone = MMDiT(CONFIG)
    backbone.initialize(torch.Generator().manual_seed(seed))
    return backbone


def give_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def assert_moved_alike(
    ours: nn.Module, optimizer: Optimizer, theirs: nn.Module, peer: torch.optim.Optimizer
) -> None:
    """Three steps of ours at half its rate, and of torch's as it is."""
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.step(0.5)
        peer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def singular_values(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_newton_schulz_makes_every_matrix_nearly_orthogonal(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    stack = sizes * torch.randn(3, 32, 64, generator=generator)
    result = orthogonalize(stack.to(dtype)).float()
    for before, after in zip(stack, result, strict=True):
        assert singular_values(after).min() > 0.6
        assert singular_values(after).max() < 1.25
        # Same singular vectors: U V^T of the input.
        u, _, vh = torch.linalg.svd(before.double(), full_matrices=False)
        core = u.T @ after.double() @ vh.T
        assert core.diagonal().min() > 0.6
        assert (core - core.diagonal().diag()).abs().max() < 0.05


@pytest.mark.parametrize("cols", [40, 64, 320])
@pytest.mark.parametrize("num_steps", [1, 3, 5])
def test_newton_schulz_is_its_polynomial_of_the_singular_values(cols: int, num_steps: int) -> None:
    """By whichever products, for matrices of any shape, and of singular values down to 1e-4."""
    generator = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(
        torch.randn(2, 32, cols, generator=generator, dtype=torch.float64), full_matrices=False
    )
    values = torch.logspace(0, -4, 32, dtype=torch.float64)
    result = orthogonalize(((u * values) @ vh).float(), num_steps=num_steps)
    values = values / values.norm()
    for _ in range(num_steps):
        a, b, c = QUINTIC
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(result.double(), (u * values) @ vh, rtol=0, atol=5e-4)


def test_newton_schulz_of_zeros_is_zero() -> None:
    assert orthogonalize(torch.zeros(2, 4, 8)).abs().max() == 0


@pytest.mark.parametrize("scaling", ["spectral", "match_adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_agrees_with_torch_on_single_matrices(scaling: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, theirs = Toy(), Toy()
    theirs.load_state_dict(ours.state_dict())
    config = Muon(
        learning_rate=0.05,
        weight_decay=0.1,
        scaling=scaling,  # pyright: ignore[reportArgumentType]
    )
    optimizer = config.build(ours, dtype)
    matrices = [p for p in theirs.blocks.parameters() if p.ndim == 2]
    peer = torch.optim.Muon(
        matrices,
        lr=0.05 * 0.5,
        weight_decay=0.1,
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw" if scaling == "match_adamw" else "original",
    )
    before = [p.detach().clone() for p in matrices]
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.step(0.5)
        peer.step()
    mine = [p for p in ours.blocks.parameters() if p.ndim == 2]
    for start, a, b in zip(before, mine, matrices, strict=True):
        # torch always iterates in bfloat16, hence a tolerance of a few of its roundings.
        assert (a - b).norm() / (b - start).norm() < 0.03


def test_muon_orthogonalizes_fused_projections_part_by_part() -> None:
    backbone = model()
    weight = backbone.joint_blocks[0].x_block.attn.qkv.weight
    before = weight.detach().clone()
    config = Muon(learning_rate=1.0, weight_decay=0.0, scaling="spectral")
    optimizer = config.build(backbone, torch.float32)
    give_gradients(backbone, 0)
    optimizer.step(1.0)
    for part in (weight - before).detach().split(CONFIG.hidden_dim):
        values = singular_values(part)
        # A Gaussian square matrix has a few tiny singular values; the rest ends near 1.
        assert values.max() < 1.25
        assert values.quantile(0.1) > 0.6


def test_muon_takes_the_blocks_matrices_and_only_them() -> None:
    names = [name for name, _, _ in hidden_matrices(model(), Muon(orthogonalize_convolutions=True))]
    assert all(name.startswith("joint_blocks.") for name in names)
    assert not any("adaLN" in name or "bias" in name for name in names)
    parts = {
        name: n for name, _, n in hidden_matrices(model(), Muon(orthogonalize_modulation=True))
    }
    assert parts["joint_blocks.0.x_block.attn.qkv.weight"] == 3
    assert parts["joint_blocks.0.x_block.adaLN_modulation.1.weight"] == 6
    assert parts["joint_blocks.1.context_block.adaLN_modulation.1.weight"] == 2
    assert parts["joint_blocks.0.x_block.mlp.fc1.weight"] == 1


def test_muon_knows_the_stacked_matrices_of_every_backbone() -> None:
    sizes = {"depth": 1, "context_dim": 32, "pooled_dim": 24, "position_side": 8, "base_side": 4}
    for config in (CrossDiTConfig(**sizes), UViTConfig(**sizes)):
        backbone = build_backbone(config)
        muon = Muon(orthogonalize_modulation=True)
        parts = {name: n for name, _, n in hidden_matrices(backbone, muon)}
        block = "transformer_blocks.0."
        assert {name.removeprefix(block): n for name, n in parts.items()} == {
            "x_block.adaLN_modulation.1.weight": 6,
            "x_block.attn.qkv.weight": 3,
            "x_block.attn.proj.weight": 1,
            "x_block.mlp.fc1.weight": 1,
            "x_block.mlp.fc2.weight": 1,
            "cross_attn.q.weight": 1,
            "cross_attn.kv.weight": 2,
            "cross_attn.proj.weight": 1,
        }


def test_convolutions_filters_are_the_rows_of_a_matrix() -> None:
    backbone = build_backbone(
        UViTConfig(depth=1, context_dim=32, pooled_dim=24, position_side=8, base_side=4)
    )
    config = Muon(
        learning_rate=1.0, weight_decay=0.0, scaling="spectral", orthogonalize_convolutions=True
    )
    convolutions = {n for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d)}
    taken = {name.removesuffix(".weight"): p for name, p, _ in hidden_matrices(backbone, config)}
    assert convolutions - taken.keys() == {"x_embedder"}
    before = {name: taken[name].detach().clone() for name in convolutions & taken.keys()}
    optimizer = config.build(backbone, torch.float32)
    give_gradients(backbone, 0)
    optimizer.step(1.0)
    for name, old in before.items():
        update = (taken[name] - old).detach().flatten(1)
        values = singular_values(update) / max(1.0, update.shape[0] / update.shape[1]) ** 0.5
        assert values.max() < 1.25
        assert values.quantile(0.1) > 0.6


def test_every_parameter_is_moved_by_muon_or_its_rest() -> None:
    backbone = model()
    before = {name: p.detach().clone() for name, p in trainable(backbone)}
    optimizer = Muon().build(backbone, torch.float32)
    give_gradients(backbone, 0)
    optimizer.step(1.0)
    assert all((p != before[name]).any() for name, p in trainable(backbone))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_holds_its_state_alone_between_steps(dtype: torch.dtype) -> None:
    backbone = model()
    give_gradients(backbone, 0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as built:
        optimizer = Muon().build(backbone, dtype)
    state = sum(t.nbytes for t in optimizer.state().values())
    assert state <= sum(_changes(built)) < 1.01 * state
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as moved:
        optimizer.step(1.0)
    assert sum(_changes(moved)) == 0
    within = max(accumulate(_changes(moved)))
    assert 0.75 * optimizer.working_bytes() < within < optimizer.working_bytes()


def _changes(profiled: profile) -> list[int]:
    """Bytes allocated and, below 0, given back, in the order of time."""
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return [num_bytes for _, num_bytes in sorted(changes)]


def test_weight_decay_spares_norms_biases_and_embeddings() -> None:
    toy = Toy()
    decayed = {name for name, _ in trainable(toy) if is_decayed(toy, name)}
    assert decayed == {"embed.weight", "blocks.0.weight", "blocks.1.weight", "blocks.2.weight"}


def test_adamw_is_torchs_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = Toy(), Toy()
    theirs.load_state_dict(ours.state_dict())
    optimizer = AdamW(learning_rate=0.01, weight_decay=0.1).build(ours, torch.float32)
    named = dict(theirs.named_parameters())
    peer = torch.optim.AdamW(
        [
            {"params": [p for n, p in named.items() if is_decayed(theirs, n)], "weight_decay": 0.1},
            {"params": [p for n, p in named.items() if not is_decayed(theirs, n)]},
        ],
        lr=0.005,
        betas=(0.9, 0.99),
        weight_decay=0.0,
    )
    assert_moved_alike(ours, optimizer, theirs, peer)


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "momentum"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_number_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value}; give"):
        Muon(**{name: value})


@pytest.mark.parametrize(
    "wrong", [{"betas": (0.9, 1.0)}, {"eps": 0.0}, {"eps": math.nan}, {"learning_rate": -1.0}]
)
def test_a_number_out_of_adamws_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"AdamW's {next(iter(wrong))}"):
        AdamW(**wrong)


def test_no_newton_schulz_step_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Muon(num_newton_schulz_steps=0)


@pytest.mark.parametrize("config", [AdamW(), Muon(), Muon(orthogonalize_modulation=True)])
def test_a_copied_state_continues_bit_for_bit(config: AdamW | Muon) -> None:
    first, second = model(), model()
    one = config.build(first, torch.bfloat16)
    two = config.build(second, torch.bfloat16)
    for step in range(2):
        give_gradients(first, step)
        one.step(1.0)
    second.load_state_dict(first.state_dict())
    assert one.state().keys() == two.state().keys()
    for name, value in two.state().items():
        value.copy_(one.state()[name])
    for backbone, optimizer in ((first, one), (second, two)):
        give_gradients(backbone, 7)
        optimizer.step(0.5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert all(torch.equal(a, two.state()[name]) for name, a in one.state().items())


RATES = {"joint_blocks": 0.5, "joint_blocks.0.x_block": 0.25, "context_embedder": 0.0}


def test_rates_are_those_of_torchs_parameter_groups() -> None:
    ours, theirs = model(), model()
    optimizer = AdamW(learning_rate=0.01, weight_decay=0.1, rates=RATES).build(ours, torch.float32)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable(theirs):
        rate = 1.0
        if name.startswith("context_embedder."):
            rate = 0.0
        elif name.startswith("joint_blocks."):
            rate = 0.25 if name.startswith("joint_blocks.0.x_block.") else 0.5
        groups.setdefault((rate, 0.1 if is_decayed(theirs, name) else 0.0), []).append(parameter)
    assert len(groups) == 8
    peer = torch.optim.AdamW(
        [
            {"params": some, "lr": 0.005 * rate, "weight_decay": decay}
            for (rate, decay), some in groups.items()
        ],
        betas=(0.9, 0.99),
    )
    assert_moved_alike(ours, optimizer, theirs, peer)


def test_rates_scale_muons_update_and_decay() -> None:
    moved: list[dict[str, Tensor]] = []
    for rates in (None, RATES):
        backbone = model()
        before = {name: p.detach().clone() for name, p in trainable(backbone)}
        config = Muon(learning_rate=0.01, weight_decay=0.1, rates=rates)
        optimizer = config.build(backbone, torch.float32)
        give_gradients(backbone, 0)
        optimizer.step(1.0)
        moved.append({name: (p - before[name]).detach() for name, p in trainable(backbone)})
    plain, scaled = moved
    for name, update in scaled.items():
        rate = rate_of(name, RATES)
        torch.testing.assert_close(update, rate * plain[name], rtol=1e-3, atol=1e-7)
        assert bool(update.any()) == (rate > 0.0)


def test_a_part_of_no_rate_moves_as_without_rates() -> None:
    """Bit for bit, and where the factor is 1 too."""
    for config in (AdamW(), Muon()):
        weights: list[dict[str, nn.Parameter]] = []
        for rates in (None, {"joint_blocks.1": 1.0, "x_embedder": 0.5}):
            backbone = model()
            optimizer = replace(config, rates=rates).build(backbone, torch.float32)
            give_gradients(backbone, 0)
            optimizer.step(0.5)
            weights.append(dict(trainable(backbone)))
        plain, some = weights
        differing = {name for name in plain if not torch.equal(plain[name], some[name])}
        assert differing == {name for name in plain if name.startswith("x_embedder.")}


def test_a_name_ends_at_a_dot() -> None:
    rates = {"blocks.1": 0.5, "blocks.10.mlp": 0.1}
    names = ("blocks.1.mlp.fc1.weight", "blocks.10.attn.weight", "blocks.10.mlp.fc1.weight")
    assert [rate_of(name, rates) for name in names] == [0.5, 1.0, 0.1]
    assert rate_of("blocks.1", rates) == 0.5


def test_all_of_muons_matrices_may_be_frozen() -> None:
    ours = model()
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    optimizer = Muon(rates={"joint_blocks": 0.0}).build(ours, torch.float32)
    give_gradients(ours, 0)
    optimizer.step(1.0)
    for name, p in ours.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("joint_blocks.")


def test_rates_are_saved_and_old_recipes_have_none() -> None:
    for config in (AdamW(rates=RATES), Muon(rates=RATES)):
        assert from_json(type(config), to_json(config)) == config
        assert "rates" not in to_json(type(config)())
    recipe = tiny_recipe(optimizer=Muon())
    words = ["--optimizer.rates", "context_embedder", "0.1", "joint_blocks.0", "0"]
    changed = apply_overrides(recipe, [*words, "--seed", "3"], prog="rectiflow")
    assert changed.optimizer.rates == {"context_embedder": 0.1, "joint_blocks.0": 0.0}
    assert from_json(TrainRecipe, to_json(changed)) == changed


def test_rates_that_cannot_be_are_refused() -> None:
    for rate in (-0.1, math.nan, math.inf):
        for kind in (AdamW, Muon):
            text = f"rates give 'x' the factor {rate}; give a number of at least 0"
            with pytest.raises(ConfigError, match=text):
                kind(rates={"x": rate})
    with pytest.raises(ConfigError, match=r"rest has rates .* give them to Muon itself"):
        Muon(rest=AdamW(rates={"x": 1.0}))
    for config in (AdamW(rates={"joint_block": 1.0}), Muon(rates={"joint_block": 1.0})):
        text = r"rates name 'joint_block', but no .* names begin with x_embedder, .*joint_blocks"
        with pytest.raises(ConfigError, match=text):
            config.build(model(), torch.float32)


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_an_alignments_projector_has_names_of_its_own(kind: type[AdamW | Muon]) -> None:
    recipe = tiny_recipe(
        optimizer=kind(rates={"context_embedder": 0.1}),
        alignment=RepresentationAlignment(weight=0.5, feature_dim=FEATURE_DIM),
    )
    assert TrainState.start(recipe).aligner is not None


SHARDED = """
import os, sys, tempfile, torch
import torch.distributed as dist
torch.set_num_threads(1)
from rectiflow.distributed.sharding import shard, whole
from rectiflow.distributed.world import CPU, mesh_of
from rectiflow.models.mmdit import MMDiT, MMDiTConfig
from rectiflow.training.optimizers import AdamW, Muon

folder = tempfile.mkdtemp()
rank = 0 if os.fork() else 1
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
mesh = mesh_of(CPU, num_copies=1, num_parts=2)
rates = {"joint_blocks": 0.5, "joint_blocks.0.x_block": 0.25, "context_embedder": 0.0}
sizes = dict(depth=2, context_dim=32, pooled_dim=24, position_side=8, base_side=4)
for config in (AdamW(rates=rates), Muon(rates=rates)):
    found = []
    for is_cut in (False, True):
        model = MMDiT(MMDiTConfig(**sizes))
        model.initialize(torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(1)
        named = dict(model.named_parameters())
        gradients = {n: torch.randn(p.shape, generator=generator) for n, p in named.items()}
        if is_cut:
            shard(model, mesh, torch.float32)
        for name, p in model.named_parameters():
            p.grad = gradients[name]
            if is_cut:
                from torch.distributed.tensor import distribute_tensor
                p.grad = distribute_tensor(gradients[name], p.device_mesh, p.placements)
        config.build(model, torch.float32).step(1.0)
        found.append({n: whole(p.detach()) for n, p in model.named_parameters()})
    uncut, cut = found
    for name in uncut:
        torch.testing.assert_close(cut[name], uncut[name], rtol=1e-5, atol=1e-7)
dist.destroy_process_group()
if rank == 0:
    assert os.wait()[1] == 0
    print("same")
"""


@pytest.mark.distributed
def test_rates_of_a_model_that_is_cut_are_the_same(
    run_python: Callable[..., CompletedProcess[str]],
) -> None:
    done = run_python(SHARDED, timeout_s=300.0)
    assert done.stdout.split() == ["same"], done.stderr
