"""One training step of an MM-DiT against diffusers' transformer of the same size; JSON rows.

Both run in the same loop on the same batch: autocast to bfloat16 where the processor multiplies
it (the row says which type), flow-matching loss, gradient clipping, torch's fused AdamW. With
`--theirs bf16` diffusers' model runs in bfloat16 whatever the processor, as its scripts' mixed
precision does. Both are measured once more with their blocks as compiled graphs, which needs a C++
compiler. The limit measured beside them is the time of the step's matrix products alone, at the
rate that one large product of our type reaches.

    python benchmarks/training_step.py [--repeats 20] [--theirs bf16]
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import SD3Transformer2DModel
from measure import interleaved_ms, print_row
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rectiflow.flow import flow_matching_loss, rectified_flow
from rectiflow.models.compilation import compile_blocks
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.mmdit import MMDiT, MMDiTConfig
from rectiflow.models.precision import compute_dtype

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and batch; `latent_side` in latent pixels, two to a token."""

    name: str
    depth: int
    batch_size: int
    latent_side: int
    num_text: int
    context_dim: int
    pooled_dim: int


CASES = (
    Case(
        name="demo",
        depth=4,
        batch_size=64,
        latent_side=8,
        num_text=32,
        context_dim=192,
        pooled_dim=160,
    ),
    Case(
        name="depth 8, 256+154 tokens",
        depth=8,
        batch_size=4,
        latent_side=32,
        num_text=154,
        context_dim=4096,
        pooled_dim=2048,
    ),
)


def ours(case: Case) -> tuple[nn.Module, Callable[..., torch.Tensor]]:
    """Our MM-DiT, initialised as for training."""
    model = MMDiT(
        MMDiTConfig(
            depth=case.depth,
            context_dim=case.context_dim,
            pooled_dim=case.pooled_dim,
            position_side=case.latent_side // 2,
            base_side=case.latent_side // 2,
        )
    )
    model.initialize(torch.Generator().manual_seed(0))
    return model, model


def theirs(case: Case) -> tuple[nn.Module, Callable[..., torch.Tensor]]:
    """diffusers' transformer with the same widths."""
    model = SD3Transformer2DModel(
        sample_size=case.latent_side,
        patch_size=2,
        in_channels=16,
        num_layers=case.depth,
        attention_head_dim=64,
        num_attention_heads=case.depth,
        joint_attention_dim=case.context_dim,
        caption_projection_dim=64 * case.depth,
        pooled_projection_dim=case.pooled_dim,
        out_channels=16,
        pos_embed_max_size=case.latent_side // 2,
    )

    def forward(z_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        return model(
            hidden_states=z_t,
            encoder_hidden_states=conditioning.context,
            pooled_projections=conditioning.pooled,
            timestep=1000 * t,
            return_dict=False,
        )[0]

    return model, forward


def training_step(
    case: Case, model: nn.Module, forward: Callable[..., torch.Tensor], dtype: torch.dtype
) -> Callable[[], None]:
    """The loop's body, identical for both networks but for the type of the products."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    b, side = case.batch_size, case.latent_side
    x0, eps = random(b, 16, side, side), random(b, 16, side, side)
    t = torch.rand(b, generator=generator)
    conditioning = Conditioning(
        context=random(b, case.num_text, case.context_dim), pooled=random(b, case.pooled_dim)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    formulation = rectified_flow()

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = flow_matching_loss(forward, formulation, x0, eps, t, conditioning).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def products_alone_ms(step: Callable[[], None]) -> tuple[float, float]:
    """(GFLOP of a step, milliseconds they take at the rate of one large product)."""
    with FlopCounterMode(display=False) as counter:
        step()
    gflop = counter.get_total_flops() / 1e9
    a = torch.randn(2048, 2048, dtype=compute_dtype("auto"))
    times: list[float] = []
    for _ in range(12):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    rate = 2 * 2048**3 / 1e9 / sorted(times)[6]
    return gflop, 1e3 * gflop / rate


def main() -> None:
    """Measure every case and print a row for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--theirs", choices=("auto", "bf16"), default="auto")
    chosen = parser.parse_args()
    repeats, dtype = chosen.repeats, compute_dtype("auto")
    their_dtype = torch.bfloat16 if chosen.theirs == "bf16" else dtype
    for case in CASES:
        steps = {
            "rectiflow": training_step(case, *ours(case), dtype),
            "diffusers": training_step(case, *theirs(case), their_dtype),
        }
        for name, make, type_, blocks in (
            ("rectiflow", ours, dtype, "blocks"),
            ("diffusers", theirs, their_dtype, "transformer_blocks"),
        ):
            model, forward = make(case)
            compile_blocks(getattr(model, blocks), CPU)
            steps[f"{name} compiled"] = training_step(case, model, forward, type_)
        gflop, limit_ms = products_alone_ms(steps["rectiflow"])
        times = interleaved_ms(steps, warm_up=3, repeats=repeats)
        print_row(
            "training_step",
            case=case.name,
            dtype=str(dtype),
            their_dtype=str(their_dtype),
            batch_size=case.batch_size,
            tokens=[(case.latent_side // 2) ** 2, case.num_text],
            repeats=repeats,
            step_ms=times,
            speedup={
                name: round(times["diffusers"]["median"] / times[name]["median"], 3)
                for name in steps
                if name != "diffusers"
            },
            gflop=round(gflop, 2),
            products_alone_ms=round(limit_ms, 2),
        )


if __name__ == "__main__":
    main()
