"""Trains the demo's recipe, the paper's, or a plain diffusers loop for some seconds of one thread.

rectiflow shapeworld draw --count 50000 --out images && rectiflow encode images --out store
OMP_NUM_THREADS=1 python race.py store demo 300 --seed 0 >> race.jsonl

All see the same pictures and are measured alike: held-out loss of what one would sample from,
at the demo's seven times, against the processor seconds spent on training. No rate ever decays, so
that every moment of a run stands for itself; `tiny` alone is a whole run, which ends with its last
step. Prints a JSON row, with scores at the end. With `--keep FILE` a race that was stopped goes on.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from rectiflow.base.files import atomic_write
from rectiflow.evaluation.shapeworld import evaluate
from rectiflow.flow import ResolutionShift, flow_matching_loss
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.frame import Backbone
from rectiflow.models.mmdit import MMDiT
from rectiflow.models.published.loading import load_mmdit
from rectiflow.models.shipped import load_autoencoder, load_conditioner
from rectiflow.recipes.previews import model_in_training
from rectiflow.recipes.small import demo, mmdit, tiny
from rectiflow.training.ema import EmaConfig
from rectiflow.training.feed import Feed, open_feed
from rectiflow.training.optimizers import AdamW
from rectiflow.training.recipe import TrainRecipe
from rectiflow.training.schedule import Trapezoid
from rectiflow.training.state import TrainState
from rectiflow.training.step import draw, train_step
from rectiflow.training.validation import validate

#: Far beyond the end of any race, so that no rate decays.
ENDLESS = 10**9
TINY_STEPS = 8_000
PER_TASK = 25


def demo_recipe() -> TrainRecipe:
    """What `rectiflow demo` trains."""
    return replace(demo(), max_steps=ENDLESS)


def paper_recipe() -> TrainRecipe:
    """The ablation's training (arXiv 2403.03206, appendix B.3) of an MM-DiT of depth 3.

    Its batch of 1024 would leave a few dozen updates, its warm-up of 1000 steps all of the race:
    the batch is the demo's and the warm-up a tenth.
    """
    return replace(
        mmdit(3),
        name="paper",
        batch_size=16,
        max_steps=ENDLESS,
        shift=ResolutionShift(alpha=1.0),
        optimizer=AdamW(learning_rate=1e-4, betas=(0.9, 0.999)),
        schedule=Trapezoid(warmup_steps=100, decay_fraction=0.0),
        ema=EmaConfig(decay=0.99, every=100),
    )


def tiny_recipe() -> TrainRecipe:
    """The shipped model's, of fewer steps."""
    return replace(tiny(), max_steps=TINY_STEPS)


class Ours:
    """A recipe in this package's own step."""

    def __init__(self, recipe: TrainRecipe, feed: Feed) -> None:
        self.recipe, self.feed = recipe, feed
        self.state = TrainState.start(recipe)

    def step(self, number: int) -> None:
        train_step(self.state, self.feed.batch_at(number), self.recipe)

    def sampled_from(self) -> nn.Module:
        return self.state.ema.model

    def saved(self) -> dict[str, Any]:
        return dict(self.state.tensors())

    def take_up(self, saved: dict[str, Any], num_steps: int) -> None:
        with torch.no_grad():
            for stem, own in self.state.tensors().items():
                for name, value in own.items():
                    value.copy_(saved[stem][name])
        self.state.step = num_steps


class Diffusers:
    """The loop of diffusers' scripts for SD3 around its transformer: all prompts whole."""

    def __init__(self, recipe: TrainRecipe, feed: Feed) -> None:
        self.recipe, self.feed = replace(recipe, encoder_dropout=0.0), feed
        config = recipe.backbone
        torch.manual_seed(recipe.seed)
        self.model = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            num_layers=config.depth,
            attention_head_dim=64,
            num_attention_heads=config.depth,
            joint_attention_dim=config.context_dim,
            caption_projection_dim=64 * config.depth,
            pooled_projection_dim=config.pooled_dim,
            out_channels=16,
            pos_embed_max_size=config.position_side,
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=1e-2)

    def predict(self, z_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return self.model(
            hidden_states=z_t,
            encoder_hidden_states=conditioning.context,
            pooled_projections=conditioning.pooled,
            timestep=1000.0 * t,
            return_dict=False,
        )[0]

    def step(self, number: int) -> None:
        example = draw(self.feed.batch_at(number), self.recipe)
        flow_matching_loss(
            self.predict,
            self.recipe.formulation,
            example.x0,
            example.eps,
            example.t,
            example.conditioning,
        ).loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def saved(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def take_up(self, saved: dict[str, Any], num_steps: int) -> None:
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])

    def sampled_from(self) -> MMDiT:
        """Its weights in our MM-DiT, by way of a file in its layout."""
        with TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            return load_mmdit(Path(folder) / "diffusion_pytorch_model.safetensors")


RACERS: dict[str, tuple[Callable[[], TrainRecipe], type[Ours] | type[Diffusers]]] = {
    "demo": (demo_recipe, Ours),
    "tiny": (tiny_recipe, Ours),
    "paper": (paper_recipe, Ours),
    "diffusers": (paper_recipe, Diffusers),
}


def main() -> None:
    """Train, look at the held-out loss on the way, score, and print the row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("racer", choices=RACERS)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--look-every", type=float, default=40.0, metavar="SECONDS")
    parser.add_argument("--per-task", type=int, default=PER_TASK)
    parser.add_argument("--keep", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    make_recipe, kind = RACERS[chosen.racer]
    recipe = replace(make_recipe(), seed=chosen.seed)
    racer = kind(recipe, open_feed(chosen.store, recipe))
    spent_s, num_steps, curve = 0.0, 0, []
    if chosen.keep is not None and chosen.keep.exists():
        kept = torch.load(chosen.keep, weights_only=True)
        spent_s, num_steps, curve = kept["spent_s"], kept["num_steps"], kept["curve"]
        racer.take_up(kept["tensors"], num_steps)
    while spent_s < chosen.seconds and num_steps < recipe.max_steps:
        started = time.process_time()
        while time.process_time() - started < chosen.look_every and num_steps < recipe.max_steps:
            racer.step(num_steps)
            num_steps += 1
        spent_s += time.process_time() - started
        measured = validate(racer.sampled_from(), racer.feed.validation, demo())
        curve.append([round(spent_s, 1), round(measured.loss, 4)])
        if chosen.keep is not None:
            kept = {"spent_s": spent_s, "num_steps": num_steps, "curve": curve}
            with atomic_write(chosen.keep) as file:
                torch.save(kept | {"tensors": racer.saved()}, file)
    backbone = racer.sampled_from()
    assert isinstance(backbone, Backbone)
    model = model_in_training(
        recipe,
        backbone,
        autoencoder=load_autoencoder(),
        conditioner=load_conditioner(),
        sampling=recipe.sampling,
        world="small",
        resolution_px=64,
    )
    seen = evaluate(model, per_task=chosen.per_task).overall.seen
    row = {
        "racer": chosen.racer,
        "seed": chosen.seed,
        "steps": num_steps,
        "pictures": num_steps * recipe.batch_size,
        "seconds": round(spent_s, 1),
        "held_out_loss": curve,
        "overall": round(seen.lenient.mean, 3),
        "graded": round(seen.graded.mean, 3),
    }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
