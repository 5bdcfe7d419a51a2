"""The chance table is ordered as it must be, and is printed."""

import subprocess
from collections.abc import Callable

from rectiflow.shapeworld.chance import chance_table, format_chance
from rectiflow.shapeworld.scene import TASKS
from rectiflow.shapeworld.world import World


def test_chance_is_small_and_strict_is_smaller(world: World) -> None:
    table = chance_table(world, per_task=15)
    assert tuple(table) == TASKS
    for task, chance in table.items():
        assert 0.0 <= chance.strict <= chance.correct <= chance.graded < 1.0
        # A single shape of n is right once in n.
        assert chance.correct <= (0.35 if task == "single_object" else 0.2)
    text = format_chance(world, table)
    for task in TASKS:
        assert task in text


def test_module_prints_both_tables(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = run_python("-m", "rectiflow.shapeworld.chance", "--per-task", "4")
    assert done.returncode == 0, done.stderr
    assert "small" in done.stdout
    assert "full" in done.stdout
    assert done.stdout.count("typography") == 2
