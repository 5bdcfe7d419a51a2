"""How long drawing a scene and reading a picture back take, in both worlds; JSON rows.

python benchmarks/shapeworld.py [--repeats 5] [--count 200]
"""

import argparse

from measure import interleaved_ms, print_row

from rectiflow.shapeworld.oracle import Oracle
from rectiflow.shapeworld.render import render
from rectiflow.shapeworld.scene import sample_scene
from rectiflow.shapeworld.world import FULL, SMALL, World


def main() -> None:
    """Measure both worlds and print a row for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--count", type=int, default=200)
    arguments = parser.parse_args()
    for world in (FULL, SMALL):
        measure(world, count=arguments.count, repeats=arguments.repeats)


def measure(world: World, *, count: int, repeats: int) -> None:
    """Draw and read `count` scenes and print a row."""
    scenes = [sample_scene(world, split="val", seed=2, index=index) for index in range(count)]
    pictures = [render(world, scene) for scene in scenes]
    oracle = Oracle(world)
    times = interleaved_ms(
        {
            "draw": lambda: [render(world, scene) for scene in scenes],
            "read": lambda: [oracle.read(picture) for picture in pictures],
        },
        warm_up=1,
        repeats=repeats,
    )
    print_row(
        "shapeworld",
        world=world.name,
        pictures=count,
        repeats=repeats,
        ms_per_picture={
            work: {level: round(value / count, 4) for level, value in time.items()}
            for work, time in times.items()
        },
    )


if __name__ == "__main__":
    main()
