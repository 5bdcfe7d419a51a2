"""What the abstraction of formulations costs against rectified flow written by hand; JSON rows.

The loss and a guided Euler step are timed around a backbone that does nothing, so that only what
surrounds it counts; the difference is given as a share of a real training or sampling step.

    python benchmarks/formulation.py [--repeats 200]
"""

import argparse
from collections.abc import Callable
from itertools import pairwise

import torch
from measure import interleaved_ms, print_row
from torch import Tensor

from rectiflow.flow import flow_matching_loss, rectified_flow
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.mmdit import MMDiT
from rectiflow.recipes.small import demo
from rectiflow.sampling import ClassifierFreeGuidance, Euler, Field, integrate

NUM_STEPS = 4
GUIDANCE_SCALE = 3.0


def nothing(z_t: Tensor, t: Tensor, conditioning: object) -> Tensor:
    """A backbone without cost."""
    return z_t


def main() -> None:
    """Print a row for the loss and one for sampling."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200)
    repeats = parser.parse_args().repeats
    recipe = demo()
    backbone = MMDiT(recipe.backbone)
    backbone.initialize(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    b, config = recipe.batch_size, recipe.backbone
    x0, eps = torch.randn((2, b, config.in_channels, 8, 8), generator=generator)
    t = torch.rand(b, generator=generator)
    conditioning = Conditioning(
        context=torch.randn(b, 32, config.context_dim, generator=generator),
        pooled=torch.randn(b, config.pooled_dim, generator=generator),
    )
    formulation = rectified_flow()

    def loss_by_hand(network: Callable[..., Tensor]) -> Tensor:
        at = t[:, None, None, None]
        output = network((1.0 - at) * x0 + at * eps, t, conditioning)
        return (output - (eps - x0)).square().mean()

    def step(loss: Callable[[Callable[..., Tensor]], Tensor]) -> None:
        loss(backbone).backward()
        backbone.zero_grad()

    def loss(network: Callable[..., Tensor]) -> Tensor:
        return flow_matching_loss(network, formulation, x0, eps, t, conditioning).loss

    report(
        "loss",
        interleaved_ms(
            {
                "abstraction": lambda: loss(nothing),
                "by_hand": lambda: loss_by_hand(nothing),
                "real_step": lambda: step(loss),
            },
            warm_up=5,
            repeats=repeats,
        ),
        repeats,
    )

    times = torch.linspace(1.0, 0.0, NUM_STEPS + 1)

    def sample(network: Callable[..., Tensor]) -> Tensor:
        field = Field(
            backbone=network,
            formulation=formulation,
            guidance=ClassifierFreeGuidance(),
            guidance_scale=GUIDANCE_SCALE,
            conditioning=conditioning,
            null=conditioning,
        )
        return integrate(field, Euler(), eps, times)

    def sample_by_hand(network: Callable[..., Tensor]) -> Tensor:
        z, both = eps, Conditioning.concat([conditioning, conditioning])
        for now, then in pairwise(times):
            output = network(torch.cat([z, z]), now.expand(2 * b), both)
            conditional, unconditional = output.chunk(2)
            guided = unconditional + GUIDANCE_SCALE * (conditional - unconditional)
            z = z + (then - now) * guided
        return z

    with torch.inference_mode():
        assert torch.equal(sample(backbone), sample_by_hand(backbone))
        report(
            f"{NUM_STEPS} guided Euler steps",
            interleaved_ms(
                {
                    "abstraction": lambda: sample(nothing),
                    "by_hand": lambda: sample_by_hand(nothing),
                    "real_step": lambda: sample(backbone),
                },
                warm_up=5,
                repeats=repeats,
            ),
            repeats,
        )


def report(what: str, times: dict[str, dict[str, float]], repeats: int) -> None:
    """One row; `overhead` is the share of the real step that the abstraction adds."""
    median = {name: summary["median"] for name, summary in times.items()}
    overhead = (median["abstraction"] - median["by_hand"]) / median["real_step"]
    print_row("formulation", what=what, repeats=repeats, ms=times, overhead=round(overhead, 4))


if __name__ == "__main__":
    main()
