"""Compiled blocks give what plain ones do and share their weights, where there is a compiler."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CompletedProcess

import pytest
import torch
from models.small_backbones import CONFIGS, inputs, random_backbone

from rectiflow.base.errors import ConfigError
from rectiflow.models.compilation import check_compiler, compile_blocks
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


@pytest.mark.slow
@pytest.mark.compile
def test_compiled_pictures_are_those_of_before(run_python: Callable[..., CompletedProcess[str]]):
    done = run_python(PICTURES, timeout_s=600.0)
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


def test_the_given_backbone_stays_as_it_is() -> None:
    plain = random_backbone(CONFIGS["mmdit"])
    compiled = compile_blocks(plain)
    assert (is_compiled(plain), is_compiled(compiled)) == (False, True)
    for ours, theirs in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert ours is theirs


def test_a_masked_block_does_not_run_its_graph() -> None:
    plain = random_backbone(CONFIGS["mmdit"])
    compiled = compile_blocks(plain)
    for block in compiled.blocks:
        block._compiled_call_impl = lambda *_, **__: pytest.fail("its compiled graph")
    layers = range(len(plain.blocks))
    with torch.no_grad():
        expected = perturb_attention(plain, layers)(*inputs())
        assert torch.equal(perturb_attention(compiled, layers)(*inputs()), expected)


def test_without_a_compiler_it_is_told_before_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler, and there is none; install"):
        compile_blocks(random_backbone(CONFIGS["mmdit"]))
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(ConfigError, match="needs Triton; install it, or do not compile"):
        check_compiler(torch.device("cuda"))
