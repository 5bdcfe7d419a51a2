"""What known accelerators can do at most: the denominators of MFU, and what the planner plans with.

A device that is not listed has no peak here: a guessed denominator would make a wrong percentage
look like a measured one. NVIDIA prints figures "with sparsity" twice as large; these are dense.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rectiflow.base.errors import ConfigError

_TERA, _GB = 1e12, 10**9


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One kind of device.

    `name` is its spelling in `--devices`, `cuda_names` are those that the driver reports. Peaks are
    dense operations per second: `bf16_flops` on tensor cores summing in float32, `fp32_flops`
    without them, which is what PyTorch multiplies float32 with unless TF32 is allowed.
    """

    name: str
    cuda_names: tuple[str, ...]
    bf16_flops: float
    fp32_flops: float
    memory_bytes: int
    source: str

    def peak_flops(self, dtype: torch.dtype) -> float | None:
        """Operations per second at most for matrix products of a type; None for an unlisted one."""
        return {torch.bfloat16: self.bf16_flops, torch.float32: self.fp32_flops}.get(dtype)


ACCELERATORS = (
    Accelerator(
        name="H100",
        cuda_names=("NVIDIA H100 80GB HBM3",),
        bf16_flops=989.4 * _TERA,
        fp32_flops=66.9 * _TERA,
        memory_bytes=80 * _GB,
        source="NVIDIA H100 Tensor Core GPU Architecture white paper, table 2 (SXM5)",
    ),
    Accelerator(
        name="H100-PCIe",
        cuda_names=("NVIDIA H100 PCIe",),
        bf16_flops=756.0 * _TERA,
        fp32_flops=51.2 * _TERA,
        memory_bytes=80 * _GB,
        source="NVIDIA H100 Tensor Core GPU Architecture white paper, table 2 (PCIe)",
    ),
    Accelerator(
        name="H200",
        cuda_names=("NVIDIA H200",),
        bf16_flops=989.4 * _TERA,
        fp32_flops=66.9 * _TERA,
        memory_bytes=141 * _GB,
        source="NVIDIA H200 Tensor Core GPU data sheet (SXM); the chip is the H100's",
    ),
    Accelerator(
        name="A100",
        cuda_names=("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM-80GB"),
        bf16_flops=312.0 * _TERA,
        fp32_flops=19.5 * _TERA,
        memory_bytes=80 * _GB,
        source="NVIDIA A100 Tensor Core GPU data sheet (80 GB)",
    ),
    Accelerator(
        name="A100-40GB",
        cuda_names=("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
        bf16_flops=312.0 * _TERA,
        fp32_flops=19.5 * _TERA,
        memory_bytes=40 * _GB,
        source="NVIDIA A100 Tensor Core GPU data sheet (40 GB)",
    ),
    Accelerator(
        name="L40S",
        cuda_names=("NVIDIA L40S",),
        bf16_flops=362.05 * _TERA,
        fp32_flops=91.6 * _TERA,
        memory_bytes=48 * _GB,
        source="NVIDIA L40S data sheet",
    ),
    Accelerator(
        name="4090",
        cuda_names=("NVIDIA GeForce RTX 4090",),
        bf16_flops=165.2 * _TERA,
        fp32_flops=82.6 * _TERA,
        memory_bytes=24 * _GB,
        source="NVIDIA Ada GPU Architecture white paper, appendix A (FP32 accumulate)",
    ),
    Accelerator(
        name="B200",
        cuda_names=("NVIDIA B200",),
        bf16_flops=2250.0 * _TERA,
        fp32_flops=75.0 * _TERA,
        memory_bytes=180 * _GB,
        source="NVIDIA HGX B200 data sheet, an eighth of the board",
    ),
)


def accelerator(name: str) -> Accelerator:
    """The accelerator of that name, in any case.

    Raises:
        ConfigError: it is not listed; the text has the names.
    """
    for known in ACCELERATORS:
        if known.name.lower() == name.lower():
            return known
    names = ", ".join(known.name for known in ACCELERATORS)
    raise ConfigError(f"unknown device {name!r}; known are {names}")


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """What matrix products of `dtype` reach at most on a device; None for a CPU or an unknown one.

    None too for float32 where TF32 is allowed: which products then take it is not known.
    """
    if device.type != "cuda":
        return None
    if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        return None
    name = torch.cuda.get_device_name(device)
    for known in ACCELERATORS:
        if name in known.cuda_names:
            return known.peak_flops(dtype)
    return None
