"""Pictures are drawn without graphs until those of their kind are there, and each says which."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rectiflow import Pipeline
from rectiflow.base.errors import DivergedError
from rectiflow.generation.pipeline import PipelineOutput
from rectiflow.models import compilation

WAY: dict[str, Any] = {"seed": 3, "num_inference_steps": 2, "output_type": "np"}

#: Of the real compiler: eager at once, compiled in the end, and no other thread's call waits.
REAL = """
import time
from rectiflow import Pipeline

pipeline = Pipeline.from_pretrained("tiny")
pipeline.compile(wait=False)
start = time.perf_counter()
first = pipeline("a ring", seed=1, num_inference_steps=2)
took = time.perf_counter() - start
assert not first.is_compiled
while not (now := pipeline("a ring", seed=1, num_inference_steps=2)).is_compiled:
    time.sleep(0.05)
ready = time.perf_counter() - start
again = time.perf_counter()
assert pipeline("a ring", seed=2, num_inference_steps=2).is_compiled
print(f"{took:.2f} {ready:.2f} {time.perf_counter() - again:.2f}")
assert took < ready / 2
"""


class Compiler:
    """Stands in for torch's: a block's graph is the block itself, once it may be made."""

    def __init__(self, error: Exception | None = None) -> None:
        self.may_finish = threading.Event()
        self.error = error
        self.names: set[str] = set()

    def compiled(self, block: nn.Module) -> nn.Module:
        other = copy.copy(block)

        def graph(*args: Any, **options: Any) -> Any:
            name = threading.current_thread().name.partition("_")[0]
            self.names.add(name)
            if name == "compile":
                assert self.may_finish.wait(60.0)
                if self.error is not None:
                    raise self.error
            return block(*args, **options)

        other.__dict__["_compiled_call_impl"] = graph
        return other


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler()
    monkeypatch.setattr(compilation, "check_compiler", lambda _device: None)
    monkeypatch.setattr(compilation, "_compiled", made.compiled)
    return made


def _draw_until_compiled(pipeline: Pipeline, prompt: str, **way: Any) -> PipelineOutput:
    end = time.monotonic() + 60.0
    while time.monotonic() < end:
        drawn = pipeline(prompt, **way)
        if drawn.is_compiled:
            return drawn
    pytest.fail("the graphs were never taken up")


def test_pictures_are_plain_until_their_graphs_are_there(compiler: Compiler) -> None:
    pipeline = Pipeline.from_pretrained("tiny")
    plain = pipeline("a ring", **WAY)
    pipeline.compile(wait=False)
    for _ in range(2):
        early = pipeline("a ring", **WAY)
        assert not early.is_compiled
        assert np.array_equal(early.images, plain.images)
    compiler.may_finish.set()
    late = _draw_until_compiled(pipeline, "a ring", **WAY)
    np.testing.assert_allclose(late.images, plain.images, atol=1e-3)
    # Only in that thread, and later in the one that draws.
    assert compiler.names == {"compile", "MainThread"}
    # Another size, another guidance: other graphs.
    compiler.may_finish.clear()
    others: tuple[dict[str, Any], ...] = ({"height": 96}, {"guidance_scale": 1.0})
    for other in others:
        assert not pipeline("a ring", **WAY, **other).is_compiled
        assert pipeline("a blue cross", **WAY).is_compiled
    compiler.may_finish.set()
    _draw_until_compiled(pipeline, "a ring", **WAY, guidance_scale=1.0)


def test_what_the_compiler_raises_is_raised_by_the_next_call(compiler: Compiler) -> None:
    pipeline = Pipeline.from_pretrained("tiny")
    pipeline.compile(wait=False)
    compiler.error = RuntimeError("no such operation")
    compiler.may_finish.set()
    with pytest.raises(RuntimeError, match="no such operation"):
        _draw_until_compiled(pipeline, "a ring", **WAY)


def test_a_bad_request_spoils_no_size_for_those_after_it(compiler: Compiler) -> None:
    pipeline = Pipeline.from_pretrained("tiny")
    pipeline.compile(wait=False)
    damaged = torch.full((1, 16, 8, 8), torch.nan)
    with pytest.raises(DivergedError):
        pipeline("a ring", latents=damaged, num_inference_steps=2)
    compiler.may_finish.set()
    _draw_until_compiled(pipeline, "a ring", **WAY)


def test_a_changed_model_has_graphs_of_its_own(compiler: Compiler) -> None:
    pipeline = Pipeline.from_pretrained("tiny")
    pipeline.compile(wait=False)
    compiler.may_finish.set()
    _draw_until_compiled(pipeline, "a ring", **WAY)
    compiler.may_finish.clear()
    pipeline.unload_lora_weights()
    assert not pipeline("a ring", **WAY).is_compiled
    # Weights move only when the thread no longer draws with them.
    threading.Timer(0.2, compiler.may_finish.set).start()
    pipeline.to("cpu")
    assert compiler.may_finish.is_set()
    pipeline.compile()
    assert pipeline("a ring", **WAY).is_compiled


@pytest.mark.slow
@pytest.mark.compile
def test_the_first_picture_does_not_wait_for_the_compiler(
    run_python: Callable[..., CompletedProcess[str]],
) -> None:
    done = run_python(REAL, timeout_s=600.0)
    assert done.returncode == 0, done.stderr
