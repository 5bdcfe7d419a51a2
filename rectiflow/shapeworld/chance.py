"""How often a picture passes by chance: another picture of the same task, scored for a prompt.

Run `python -m rectiflow.shapeworld.chance` for the table of both worlds. A model that draws good
pictures without reading its prompt scores this much.
"""

import argparse
from dataclasses import dataclass

from rectiflow.base.errors import UserError
from rectiflow.shapeworld.captions import prompt_metadata
from rectiflow.shapeworld.oracle import Oracle
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import TASKS, sample_scene
from rectiflow.shapeworld.scoring import score
from rectiflow.shapeworld.world import World, world_by_name


@dataclass(frozen=True, kw_only=True)
class Chance:
    """Shares of other pictures of a task that pass, and their mean grade, all in [0, 1]."""

    correct: float
    strict: float
    graded: float


def chance_table(world: World, *, per_task: int = 100, seed: int = 0) -> dict[str, Chance]:
    """Score `per_task` pictures of each task for each other's prompts; returns task to shares.

    Raises:
        UserError: `per_task` is below 2, where there is no other.
    """
    if per_task < 2:
        raise UserError(f"{per_task} pictures per task have no others; give at least 2")
    oracle = Oracle(world)
    table: dict[str, Chance] = {}
    for task in TASKS:
        scenes = [
            sample_scene(world, split="val", seed=seed, index=index, task=task)
            for index in range(per_task)
        ]
        readings = [oracle.read(render(world, scene)) for scene in scenes]
        prompts = [
            prompt_metadata(world, scene, with_word_color=index % 2 == 0)
            for index, scene in enumerate(scenes)
        ]
        verdicts = [
            score(world, reading, prompt)
            for own, reading in enumerate(readings)
            for other, prompt in enumerate(prompts)
            if own != other
        ]
        table[task] = Chance(
            correct=sum(verdict.correct for verdict in verdicts) / len(verdicts),
            strict=sum(verdict.strict for verdict in verdicts) / len(verdicts),
            graded=sum(verdict.graded for verdict in verdicts) / len(verdicts),
        )
    return table


def format_chance(world: World, table: dict[str, Chance]) -> str:
    """Lay a chance table out as text, in percent."""
    lines = [f"{world.name:<14} {'correct':>8} {'strict':>8} {'graded':>8}"]
    for task, chance in table.items():
        shares = (chance.correct, chance.strict, chance.graded)
        lines.append(f"{task:<14} " + " ".join(f"{100 * share:>8.1f}" for share in shares))
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, prog="rectiflow.shapeworld.chance")
    parser.add_argument("--per-task", type=int, default=100, help="pictures per task")
    arguments = parser.parse_args()
    for name in ("small", "full"):
        world = world_by_name(name)
        try:
            table = chance_table(world, per_task=arguments.per_task)
        except UserError as error:
            parser.error(str(error))
        print(format_chance(world, table), end="\n\n")


if __name__ == "__main__":
    main()
