"""Shares add up, operations are those of the forward pass three times, no peak is ever guessed."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from training.fake_feed import FakeFeed, tiny_recipe

from rectiflow.base.errors import ConfigError
from rectiflow.models.flops import InputSize, forward_flops
from rectiflow.training.accelerators import ACCELERATORS, accelerator, peak_flops
from rectiflow.training.meter import ACTIVITIES, Meter, Usage, input_size, scaled

CUDA = torch.device("cuda")


@pytest.fixture
def device_named(monkeypatch: pytest.MonkeyPatch):
    """Makes the CUDA driver report a name."""

    def name(text: str) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: text)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)

    return name


def test_time_goes_where_it_was_spent_and_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    meter = Meter(tiny_recipe())
    for activity, seconds in (("data", 1.0), ("step", 5.0), ("saving", 2.0), ("step", 1.0)):
        with meter.spending(activity):
            clock[0] += seconds
    clock[0] += 1.0  # logging
    batch = FakeFeed().batch_at(0)
    meter.count(batch)
    assert meter.images_per_second == len(batch.keys) / 7.0
    usage = meter.read()
    assert usage.shares == {
        "data": 0.1,
        "step": 0.6,
        "validation": 0.0,
        "sampling": 0.0,
        "saving": 0.2,
    }
    # Waiting for data lowers the speed, saving does not.
    per_sample = 3 * forward_flops(tiny_recipe().backbone, InputSize(height=4, width=4, num_text=4))
    assert usage.flops_per_second == 4 * per_sample / 7.0
    clock[0] += 1.0
    again = meter.read()
    assert set(again.shares) == set(ACTIVITIES)
    assert (sum(again.shares.values()), again.flops_per_second) == (0.0, 0.0)


def test_the_input_is_counted_as_the_backbone_sees_it() -> None:
    assert input_size(FakeFeed().batch_at(0)) == InputSize(height=4, width=4, num_text=4)


def test_a_processor_has_speed_and_memory_but_no_percentage() -> None:
    usage = Meter(tiny_recipe()).read()
    assert usage.mfu is None
    # This very process has loaded torch: more than that, and less than a large machine.
    assert 5e7 < usage.peak_memory_bytes < 1e13
    assert "%" not in str(usage).partition(",")[0]


def test_a_known_device_has_a_percentage_of_its_dense_peak(
    device_named, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_named("NVIDIA H100 80GB HBM3")
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    meter = Meter(replace(tiny_recipe(), precision="fp32"), CUDA)
    with meter.spending("step"):
        clock[0] += 1e-6
    meter.count(FakeFeed().batch_at(0))
    usage = meter.read()
    assert usage.mfu == pytest.approx(usage.flops_per_second / 66.9e12)
    assert usage.peak_memory_bytes == 7
    assert str(usage).startswith(f"MFU {usage.mfu:.0%}, data 0%")


def test_an_unknown_device_has_no_peak(device_named) -> None:
    device_named("NVIDIA H100 PCIe")
    assert peak_flops(CUDA, torch.bfloat16) == 756e12
    assert peak_flops(CUDA, torch.float16) is None
    # Which float32 products would run as TF32 is not known.
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert peak_flops(CUDA, torch.float32) is None
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    device_named("NVIDIA H100 NVL")  # begins like others, and is not one of them
    assert peak_flops(CUDA, torch.bfloat16) is None
    assert peak_flops(torch.device("cpu"), torch.float32) is None


def test_the_table_names_each_device_once() -> None:
    reported = [name for known in ACCELERATORS for name in known.cuda_names]
    assert len(set(reported)) == len(reported)
    assert all(known.source and known.bf16_flops > known.fp32_flops for known in ACCELERATORS)
    assert accelerator("h100-pcie").name == "H100-PCIe"
    with pytest.raises(ConfigError, match=r"unknown device 'V100'; known are H100, H100-PCIe, H20"):
        accelerator("V100")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00 "), (9.99, "9.99 "), (43.21e9, "43.2 G"), (999.7, "1.00 k"), (5.12e11, "512 G")],
)
def test_scaled(value: float, text: str) -> None:
    assert scaled(value) == text


def test_usage_in_words() -> None:
    usage = Usage(
        shares={"data": 0.021}, peak_memory_bytes=1_200_000_000, flops_per_second=4e14, mfu=0.413
    )
    assert str(usage) == "MFU 41%, data 2%, 1.20 GB"


def test_what_all_processes_do_is_counted_and_their_share_of_the_peak_is_each_ones(
    monkeypatch: pytest.MonkeyPatch, device_named: Callable[[str], None]
) -> None:
    device_named("NVIDIA H100 PCIe")
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    meters = [Meter(tiny_recipe(), CUDA, num_processes=n) for n in (1, 4)]
    for meter in meters:
        with meter.spending("step"):
            clock[0] += 1.0
        meter.count(FakeFeed().batch_at(0))
    assert meters[1].images_per_second == 4 * meters[0].images_per_second
    one, four = (meter.read() for meter in meters)
    assert four.flops_per_second == 4 * one.flops_per_second
    assert four.mfu == one.mfu
