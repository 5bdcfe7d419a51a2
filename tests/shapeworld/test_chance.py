"""The chance table is ordered as it must be, and is printed."""

import subprocess
from collections.abc import Callable

import pytest

from rectiflow.base.errors import UserError
from rectiflow.shapeworld.chance import chance_table, format_chance, main
from rectiflow.shapeworld.scene import TASKS
from rectiflow.shapeworld.world import SMALL, World


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


@pytest.mark.parametrize("per_task", [1, 0, -3])
def test_there_must_be_another_picture(per_task: int, monkeypatch, capsys) -> None:
    with pytest.raises(UserError, match="pictures per task have no others; give at least 2"):
        chance_table(SMALL, per_task=per_task)
    monkeypatch.setattr("sys.argv", ["chance", "--per-task", str(per_task)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "error: " in capsys.readouterr().err


def test_module_prints_both_tables(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = run_python("-m", "rectiflow.shapeworld.chance", "--per-task", "4")
    assert done.returncode == 0, done.stderr
    assert "small" in done.stdout
    assert "full" in done.stdout
    assert done.stdout.count("typography") == 2
