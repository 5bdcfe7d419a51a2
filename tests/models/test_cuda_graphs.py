"""Recorded calls give what the network gives, to each kind and each thread its own.

The GPU is stood in for: what was recorded is called again, and so sees the same inputs and writes
to the same output as a graph does. That a GPU records is in `tests/system/test_on_a_gpu.py`.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from models.small_backbones import CONFIGS, inputs, random_backbone
from torch import Tensor

from rectiflow import Pipeline
from rectiflow.base.errors import ConfigError
from rectiflow.generation import pipeline as pipelines
from rectiflow.generation.changes import ModelChanges
from rectiflow.models import compilation
from rectiflow.models.compilation import with_compiled_blocks
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.cuda_graphs import MAX_RECORDED, CudaRecorder, RecordedNetwork
from rectiflow.models.weakening import perturb_attention, skip_blocks


class StandIn(CudaRecorder):
    def __init__(self, _device: object = None, *, pause_s: float = 0.0) -> None:
        self.num_recorded = self.num_replayed = 0
        self.pause_s = pause_s

    def record(self, call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.num_recorded += 1
        output = call()

        def replay() -> None:
            self.num_replayed += 1
            result = call()
            time.sleep(self.pause_s)
            output.copy_(result)

        return replay, output


@pytest.mark.parametrize("name", ["mmdit", "mmdit-x", "uvit"])
@torch.no_grad()
def test_each_kind_of_call_is_recorded_once_and_gives_what_the_network_gives(name: str) -> None:
    backbone = random_backbone(CONFIGS[name])
    recorded = RecordedNetwork(backbone, recorder := StandIn())
    z_t, t, conditioning = inputs()
    embedded = backbone.embed(conditioning)
    ended = conditioning.with_last_as_one(1)
    kinds = [
        (z_t, t, conditioning),
        (z_t, t, embedded),
        (z_t[..., :8], t, conditioning),
        (z_t[:1], t[:1], conditioning[:1]),
        (z_t, t, Conditioning(context=ended.context, pooled=ended.pooled, last_count=3)),
    ]
    for round_ in range(3):
        outputs = [recorded(z + round_, s, told) for z, s, told in kinds]
        # All at the end: no call may write over what another has returned.
        for (z, s, told), output in zip(kinds, outputs, strict=True):
            assert torch.equal(output, backbone(z + round_, s, told))
    assert (recorder.num_recorded, recorder.num_replayed) == (len(kinds), 3 * len(kinds))


@torch.no_grad()
def test_expanded_inputs_are_written_row_by_row() -> None:
    backbone = random_backbone(CONFIGS["mmdit"])
    recorded = RecordedNetwork(backbone, StandIn())
    z_t, t, conditioning = inputs()
    one = (z_t[:1].expand(2, -1, -1, -1), t[:1].expand(2), conditioning[:1].expand(2))
    assert torch.equal(recorded(*one), backbone(*one))
    assert torch.equal(recorded(z_t, t, conditioning), backbone(z_t, t, conditioning))


def test_the_autocast_around_is_recorded_without_its_cache() -> None:
    seen: list[tuple[bool, bool]] = []

    def network(z_t: Tensor, t: Tensor, _: Conditioning) -> Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
        return z_t @ z_t.mT @ z_t

    recorded = RecordedNetwork(network, recorder := StandIn())
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            assert recorded(*inputs()).dtype == torch.bfloat16
        assert recorded(*inputs()).dtype == torch.float32
    assert recorder.num_recorded == 2
    assert set(seen) == {(True, False), (False, False)}


@torch.no_grad()
def test_the_kinds_met_last_are_kept() -> None:
    recorded = RecordedNetwork(lambda z_t, t, _: z_t * 2, recorder := StandIn())
    z_t, t, conditioning = inputs(1, (4, 4 * (MAX_RECORDED + 1)))
    widths = [4 * i for i in range(1, MAX_RECORDED + 2)]
    for width in [*widths[:-1], widths[0], widths[-1], widths[0]]:
        assert torch.equal(recorded(z_t[..., :width], t, conditioning), z_t[..., :width] * 2)
    # The first was met again before the last came, the second was not.
    assert recorder.num_recorded == MAX_RECORDED + 1
    recorded(z_t[..., : widths[1]], t, conditioning)
    assert recorder.num_recorded == MAX_RECORDED + 2


def test_threads_take_turns() -> None:
    recorded = RecordedNetwork(lambda z_t, t, _: z_t + 1, StandIn(pause_s=0.005))
    start = threading.Barrier(4)

    def call(number: int) -> bool:
        z_t, t, conditioning = inputs()
        start.wait()
        return all(
            torch.equal(recorded(z_t + number, t, conditioning), z_t + number + 1) for _ in range(5)
        )

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(call, range(4)))


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    """The recorders that are made where nothing is compiled, and the CPU passes for a GPU."""
    made: list[StandIn] = []

    def make(device: torch.device) -> StandIn:
        made.append(StandIn(device))
        return made[-1]

    monkeypatch.setattr(compilation, "CudaRecorder", make)
    monkeypatch.setattr(compilation, "check_records", lambda _device: None)
    monkeypatch.setattr(pipelines, "check_records", lambda _device: None)
    monkeypatch.setattr(compilation, "check_compiler", lambda _device: None)
    monkeypatch.setattr(compilation, "_compiled", copy.copy)
    return made


@torch.no_grad()
def test_a_weakened_network_is_not_the_recorded_one(recorders: list[StandIn]) -> None:
    plain = random_backbone(CONFIGS["mmdit"])
    recorded = with_compiled_blocks(plain, cuda_graphs=True)
    assert torch.equal(recorded(*inputs()), plain(*inputs()))
    for weaken in (skip_blocks, perturb_attention):
        assert torch.equal(weaken(recorded, [0])(*inputs()), weaken(plain, [0])(*inputs()))
    assert (recorders[0].num_recorded, recorders[0].num_replayed) == (1, 1)


def test_pictures_of_a_recorded_model(recorders: list[StandIn]) -> None:
    pipeline = Pipeline.from_pretrained("tiny")
    way = {"num_inference_steps": 3, "output_type": "np"}
    plain = pipeline(["a ring", "a red circle"], seed=3, **way)
    pipeline.compile(cuda_graphs=True)
    for _ in range(2):
        drawn = pipeline(["a ring", "a red circle"], seed=3, **way)
        assert drawn.is_compiled
        np.testing.assert_allclose(drawn.images, plain.images, atol=1e-3)
    # Two pictures of three steps each time, one by one.
    assert (recorders[0].num_recorded, recorders[0].num_replayed) == (1, 12)
    pipeline.compile()
    pipeline(["a ring"], seed=3, **way)
    assert recorders[0].num_replayed == 12


def test_where_nothing_can_be_recorded() -> None:
    pipeline = Pipeline.from_pretrained("tiny")
    with pytest.raises(ConfigError, match="on device cuda, not cpu; leave them out"):
        pipeline.compile(wait=False, cuda_graphs=True)
    assert not pipeline("a ring", num_inference_steps=1).is_compiled
    with pytest.raises(ConfigError, match="of a compiled model; compile it too"):
        ModelChanges(cuda_graphs=True)
