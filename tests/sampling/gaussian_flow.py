"""Flows whose solutions are known: rectified flow to data N(0, DATA_STD²), and a bent one."""

import torch

DATA_STD = 0.5


def gaussian_velocity(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[eps − x0 | z_t], the exact field."""
    variance = (1 - t) ** 2 * DATA_STD**2 + t**2
    return z * (t - (1 - t) * DATA_STD**2) / variance


def exact(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Where the flow carries z from t = 1: quantiles of one Gaussian to those of the other."""
    return z * torch.sqrt((1 - t) ** 2 * DATA_STD**2 + t**2)


def noise() -> torch.Tensor:
    return torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]


def bent_velocity(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A field that is not linear in z, as the Gaussian's is."""
    return -t * z**2


def bent_exact(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """1/z − 1/z(1) = (t² − 1)/2."""
    return 1 / (1 / z + (t**2 - 1) / 2)
