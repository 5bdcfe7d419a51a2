"""Benchmark prompts are fixed, distinct while there are enough, and seen and held out are apart."""

import pytest

from rectiflow.shapeworld.benchmark import HELD_OUT_TASKS, benchmark_prompts
from rectiflow.shapeworld.captions import parse_caption
from rectiflow.shapeworld.scene import TASKS, held_out_kinds
from rectiflow.shapeworld.world import (
    FULL,
    SMALL,
    World,
    is_held_out_count,
    is_held_out_shapes,
    is_held_out_word,
)


@pytest.mark.parametrize("held_out", [False, True])
def test_every_task_has_its_number(world: World, held_out: bool) -> None:
    prompts = benchmark_prompts(world, per_task=30, held_out=held_out)
    tasks = HELD_OUT_TASKS if held_out else TASKS
    assert [prompt.task for prompt in prompts] == [task for task in tasks for _ in range(30)]
    for prompt in prompts:
        assert prompt.held_out == held_out
        assert prompt.metadata == parse_caption(world, prompt.prompt)
        assert prompt.metadata["tag"] == prompt.task


def test_prompts_are_fixed_and_grow_at_the_end(world: World) -> None:
    few, many = (benchmark_prompts(world, per_task=number, held_out=False) for number in (10, 40))
    assert benchmark_prompts(world, per_task=10, held_out=False) == few
    for task in TASKS:
        longer = [prompt for prompt in many if prompt.task == task]
        assert [prompt for prompt in few if prompt.task == task] == longer[:10]
    assert benchmark_prompts(world, per_task=10, held_out=False, seed=1) != few


def test_prompts_come_again_only_when_all_have_come() -> None:
    single = [p.prompt for p in benchmark_prompts(SMALL, per_task=12, held_out=False)[:12]]
    assert len(set(single)) == len(SMALL.shapes)
    assert single[:5] == single[5:10]
    color_attr = [
        p.prompt
        for p in benchmark_prompts(FULL, per_task=100, held_out=False)
        if p.task == "color_attr"
    ]
    assert len(set(color_attr)) == 100


@pytest.mark.parametrize("held_out", [False, True])
def test_prompts_ask_for_seen_or_held_out_combinations(world: World, held_out: bool) -> None:
    for prompt in benchmark_prompts(world, per_task=40, held_out=held_out):
        include = prompt.metadata["include"]
        shapes = [clause["class"] for clause in include]
        colored = tuple((c["class"], c["color"]) for c in include if "color" in c)
        counted = [(c["count"], c["class"]) for c in include if c["count"] > 1]
        found = (
            ("word" in prompt.metadata and is_held_out_word(prompt.metadata["word"]["text"]))
            or bool(held_out_kinds(colored) & {"pair"})
            or (len(shapes) == 2 and is_held_out_shapes(*shapes))
            or any(is_held_out_count(*both) for both in counted)
        )
        assert found == held_out, prompt
