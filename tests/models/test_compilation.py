"""Compiled blocks give what plain ones do and share their weights, where there is a compiler."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from models.small_backbones import CONFIGS, inputs, random_backbone

from rectiflow.base.errors import ConfigError
from rectiflow.models import compilation
from rectiflow.models.compilation import compile_blocks, with_compiled_blocks
from rectiflow.models.substitution import is_compiled
from rectiflow.models.weakening import perturb_attention

PICTURES = """
import numpy as np
from rectiflow import Pipeline

pipeline = Pipeline.from_pretrained("tiny")
way = {"num_inference_steps": 3, "output_type": "np"}
plain = pipeline(["a red circle", "a ring"], seed=3, **way)
pipeline.compile()
compiled = pipeline(["a red circle", "a ring"], seed=3, **way)
assert (plain.is_compiled, compiled.is_compiled) == (False, True)
# A byte is 4e-3.
apart = np.abs(compiled.images - plain.images).max()
assert 0.0 < apart < 1e-3, apart
# A picture is the same alone.
assert np.array_equal(pipeline("a ring", seed=4, **way).images[0], compiled.images[1])
"""

IN_8_BITS = """
import numpy as np
from rectiflow import Pipeline

pipeline = Pipeline.from_pretrained("tiny")
way = {"seed": 3, "num_inference_steps": 2, "output_type": "np"}
prompts = ["a red circle", "a ring", "two crosses"]
exact = pipeline(prompts, **way)
pipeline.quantize("int8")
plain = pipeline(prompts, **way)
pipeline.compile()
compiled = pipeline(prompts, **way)
assert compiled.is_compiled and compiled.quantization == plain.quantization

def apart(one, other):
    return np.sqrt(np.square(one.images - other.images).mean())

# Where a last bit decides which integer a number becomes, more than last bits come of it.
assert 0.0 < apart(compiled, plain) < apart(plain, exact) / 2, apart(compiled, plain)
"""

REPLAY = """
import sys
from pathlib import Path
from rectiflow.cli.main import main

out = Path(sys.argv[1])
line = ["sample", "tiny", "a ring", "--steps", "2", "--compile", "--out", str(out)]
assert main(line) == 0
(path,) = out.iterdir()
assert main(["info", str(path)]) == 0
assert main(["sample", "--replay", str(path)]) == 0
assert main(["sample", "--replay", str(path), "--compile"]) == 2
"""

SHAPES = """
import functools, itertools, sys, torch
torch.set_num_threads(1)
number, called = itertools.count(), []

def recording(graph, inputs):
    # Symbolic sizes come as inputs of their own.
    name = (next(number), all(isinstance(x, torch.Tensor) for x in inputs))
    def run(*values):
        called.append(name)
        return graph.forward(*values)
    return run

torch.compile = functools.partial(torch.compile, backend=recording)
from rectiflow.models.compilation import compile_blocks
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.mmdit import MMDiT, MMDiTConfig

model = MMDiT(MMDiTConfig(depth=1, context_dim=8, pooled_dim=8, position_side=16, base_side=4))
compile_blocks(model.blocks, torch.device("cpu"))
called.clear()

def step(height, width, is_training=True):
    conditioning = Conditioning(context=torch.randn(2, 3, 8), pooled=torch.randn(2, 8))
    with torch.set_grad_enabled(is_training):
        model(torch.randn(2, 16, height, width), torch.rand(2), conditioning)
    return called[-1]

square, wide = step(4, 4), step(4, 8)
assert square != wide and square[1] and wide[1], called
assert step(4, 4) == square and step(4, 8) == wide, called
# More shapes than torch's own limit allows, each in training and validation.
sizes = [(4, 4 + 2 * i) for i in range(6)]
graphs = {step(*size, is_training=on) for size in sizes for on in (True, False)}
assert len(graphs) == 12, graphs
print("own")
"""


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("source", [PICTURES, IN_8_BITS], ids=["plain", "in 8 bits"])
def test_compiled_pictures_are_those_of_before(
    run_python: Callable[..., CompletedProcess[str]], source: str
) -> None:
    done = run_python(source, timeout_s=600.0)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.compile
def test_a_compiled_picture_is_drawn_again(
    run_python: Callable[..., CompletedProcess[str]], tmp_path
) -> None:
    done = run_python("-c", REPLAY, str(tmp_path / "out"), timeout_s=600.0)
    assert done.returncode == 0, done.stderr
    assert "blocks            compiled" in done.stdout
    assert done.stdout.strip().endswith("identical")
    assert "the first picture of each size takes longer" in done.stderr


@pytest.mark.compile
def test_a_shape_runs_its_own_graph_whichever_came_before(
    run_python: Callable[..., CompletedProcess[str]],
) -> None:
    done = run_python(SHAPES, timeout_s=300.0)
    assert done.stdout.split() == ["own"], done.stderr


@pytest.fixture
def _trusted_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled before a block is called."""
    monkeypatch.setattr(compilation, "check_compiler", lambda _device: None)


@pytest.mark.usefixtures("_trusted_compiler")
def test_the_given_backbone_stays_as_it_is() -> None:
    plain = random_backbone(CONFIGS["mmdit"])
    compiled = with_compiled_blocks(plain)
    assert (is_compiled(plain), is_compiled(compiled)) == (False, True)
    for ours, theirs in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert ours is theirs


@pytest.mark.usefixtures("_trusted_compiler")
def test_a_masked_block_does_not_run_its_graph() -> None:
    plain = random_backbone(CONFIGS["mmdit"])
    compiled = with_compiled_blocks(plain)
    for block in compiled.blocks:
        block._compiled_call_impl = lambda *_, **__: pytest.fail("its compiled graph")
    layers = range(len(plain.blocks))
    with torch.no_grad():
        expected = perturb_attention(plain, layers)(*inputs())
        assert torch.equal(perturb_attention(compiled, layers)(*inputs()), expected)


def test_a_machine_that_cannot_compile_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_function: Any) -> Any:
        def call(_x: torch.Tensor) -> None:
            raise RuntimeError("\nNo working C++ compiler found: ['g++']\nSet TORCH_LOGS …")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    text = (
        r"torch.compile does not work here for cpu: No working C\+\+ compiler found: "
        r"\['g\+\+'\]; install a C\+\+ compiler \(such as g\+\+\) and on a GPU"
    )
    with pytest.raises(ConfigError, match=text):
        compile_blocks([], torch.device("cpu"))
    with pytest.raises(ConfigError, match=text):
        with_compiled_blocks(random_backbone(CONFIGS["mmdit"]))
