"""The prompts that models of a world are scored on: the seven tasks, seen and held out."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice

from rectiflow.base.seeds import numpy_generator
from rectiflow.shapeworld.captions import Metadata, prompt_metadata
from rectiflow.shapeworld.scene import TASKS, sample_scene
from rectiflow.shapeworld.world import World

#: A terse single-object prompt names a shape alone, so no combination in it can be held out.
HELD_OUT_TASKS = tuple(task for task in TASKS if task != "single_object")

#: Draws without a new prompt after which a task's prompts count as exhausted.
_PATIENCE = 200


@dataclass(frozen=True, kw_only=True)
class BenchmarkPrompt:
    """One prompt, what it asks for, and whether default training never saw its combination."""

    task: str
    prompt: str
    metadata: Metadata
    held_out: bool


def _distinct(world: World, task: str, held_out: bool, seed: int) -> Iterator[BenchmarkPrompt]:
    """Yield a task's prompts, each once, in the order in which scenes first ask for them."""
    rng = numpy_generator(seed, "shapeworld", world.name, "benchmark", task, int(held_out))
    seen: set[str] = set()
    index = last = 0
    while index - last < _PATIENCE:
        scene = sample_scene(
            world, split="val", seed=seed, index=index, task=task, held_out=held_out
        )
        metadata = prompt_metadata(world, scene, with_word_color=bool(rng.integers(2)))
        if metadata["prompt"] not in seen:
            seen.add(metadata["prompt"])
            last = index
            yield BenchmarkPrompt(
                task=task, prompt=metadata["prompt"], metadata=metadata, held_out=held_out
            )
        index += 1


def benchmark_prompts(
    world: World, *, per_task: int, held_out: bool, seed: int = 0
) -> list[BenchmarkPrompt]:
    """Return `per_task` prompts of every task, in the order of the tasks.

    Prompts of a task are distinct as far as there are enough, then they come again in the same
    order. Equal arguments give equal prompts, and fewer per task give the first of each. With
    `held_out`, tasks are `HELD_OUT_TASKS`.
    """
    return [
        prompt
        for task in (HELD_OUT_TASKS if held_out else TASKS)
        for prompt in islice(cycle(_distinct(world, task, held_out, seed)), per_task)
    ]
