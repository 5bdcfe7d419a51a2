"""Pictures of a model in a study: fixed prompts, fixed noise, any backbone, any sampler setting.

Prompts are encoded once, and pictures are drawn in batches of one fixed size, so that a cell's
pictures depend on nothing but its weights and the setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from rectiflow.evaluation.shapeworld import picture_seeds
from rectiflow.generation.latents import draw_latents
from rectiflow.generation.model import Model
from rectiflow.generation.noise import initial_noise, noise_source
from rectiflow.generation.text_to_image import (
    decode_latents,
    to_pixels,
)
from rectiflow.models.autoencoder import Autoencoder
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.frame import Backbone
from rectiflow.models.shipped import load_autoencoder, load_conditioner
from rectiflow.models.text import assemble
from rectiflow.models.text.conditioner import TextConditioner
from rectiflow.recipes.previews import model_in_training
from rectiflow.sampling import OnStep, SamplingDefaults
from rectiflow.shapeworld.benchmark import BenchmarkPrompt, benchmark_prompts
from rectiflow.shapeworld.world import World
from rectiflow.training.recipe import TrainRecipe

_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class SamplerSetting:
    """Euler steps and guidance."""

    num_steps: int
    guidance_scale: float

    def __str__(self) -> str:
        return f"{self.num_steps} steps, CFG {self.guidance_scale:g}"


#: The six of the paper's table 1 (arXiv 2403.03206, section 5.1).
PAPER_SETTINGS = (
    *(SamplerSetting(num_steps=50, guidance_scale=scale) for scale in (1.0, 2.5, 5.0)),
    *(SamplerSetting(num_steps=steps, guidance_scale=5.0) for steps in (5, 10, 25)),
)
#: What the small recipes sample with.
RECIPE_SETTING = SamplerSetting(num_steps=28, guidance_scale=3.0)


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """Draws the benchmark's prompts of seen combinations, `per_task` of each task."""

    world: World
    per_task: int
    resolution_px: int = 64
    autoencoder: Autoencoder
    conditioner: TextConditioner

    @cached_property
    def prompts(self) -> list[BenchmarkPrompt]:
        return benchmark_prompts(self.world, per_task=self.per_task, held_out=False)

    @cached_property
    def seeds(self) -> list[int]:
        return picture_seeds(self.prompts, seed=0)

    @torch.inference_mode()
    def draw(
        self,
        backbone: Backbone,
        recipe: TrainRecipe,
        setting: SamplerSetting,
        *,
        on_step: OnStep | None = None,
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """One picture a prompt, with the recipe's formulation and shift."""
        model = self._model(backbone, recipe, setting)
        conditioning, null = self._encoded
        source = noise_source(model, self.seeds, model.settings)
        noise = source.start().to(model.device)
        images = [
            decode_latents(
                model,
                draw_latents(
                    model,
                    conditioning[rows],
                    null,
                    noise[rows],
                    model.settings,
                    source=source[rows],
                    on_step=on_step,
                ),
            )
            for rows in torch.arange(len(self.seeds)).split(_BATCH_SIZE)
        ]
        return to_pixels(torch.cat(images))

    def starts(self, backbone: Backbone, recipe: TrainRecipe) -> Float[Tensor, "n c h w"]:
        """What the pictures are integrated from, in the prompts' order, whatever the setting."""
        model = self._model(backbone, recipe, SamplerSetting(num_steps=1, guidance_scale=1.0))
        return recipe.formulation.start(initial_noise(model, self.seeds, model.settings))

    @cached_property
    def _encoded(self) -> tuple[Conditioning, Conditioning]:
        text = self.conditioner.encode([prompt.prompt for prompt in self.prompts])
        return assemble(text), assemble(self.conditioner.null())

    def _model(self, backbone: Backbone, recipe: TrainRecipe, setting: SamplerSetting) -> Model:
        model = model_in_training(
            recipe,
            backbone,
            autoencoder=self.autoencoder,
            conditioner=self.conditioner,
            sampling=SamplingDefaults(
                num_steps=setting.num_steps, guidance_scale=setting.guidance_scale
            ),
            world=self.world.name,
            resolution_px=self.resolution_px,
        )
        # The parts go to where the backbone is.
        return model.to(model.device)


@cache
def shipped_drawer(world: World, *, per_task: int, resolution_px: int = 64) -> Drawer:
    """A drawer with the autoencoder and the text encoders that ship; one a process."""
    return Drawer(
        world=world,
        per_task=per_task,
        resolution_px=resolution_px,
        autoencoder=load_autoencoder().eval().requires_grad_(False),
        conditioner=load_conditioner(),
    )
