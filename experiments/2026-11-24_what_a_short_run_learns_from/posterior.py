"""How far noise hides which picture it is: the exact posterior over a store's own pictures.

python posterior.py STORE
"""

import sys

import torch

from rectiflow.data.latent_store import LatentStore

TIMES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
NUM_PICTURES = 20_000
NUM_PROBES = 256


def main() -> None:
    """Print, for each t, the loss of the posterior mean and the bits that are left open."""
    store = LatentStore(sys.argv[1])
    rows = torch.arange(min(NUM_PICTURES, len(store)))
    means = torch.cat(
        [
            store.read(part, torch.zeros(len(part), dtype=torch.long)).x0_mean.float().flatten(1)
            for part in rows.split(1000)
        ]
    ).unique(dim=0)
    generator = torch.Generator().manual_seed(0)
    x0 = means[torch.randperm(len(means), generator=generator)[:NUM_PROBES]]
    print(f"{len(means):,} distinct pictures")
    for t in TIMES:
        z_t = (1 - t) * x0 + t * torch.randn(x0.shape, generator=generator)
        # log p(picture | z_t) = −|z_t − (1 − t)·x0|² / 2t², up to a constant
        scores = (1 - t) * z_t @ means.T - 0.5 * (1 - t) ** 2 * means.square().sum(1)
        posterior = (scores / t**2).softmax(dim=1)
        bits = -(posterior * posterior.clamp(min=1e-30).log2()).sum(1).mean()
        velocity_loss = (posterior @ means - x0).square().mean() / t**2
        print(f"t = {t}: velocity loss {velocity_loss:.4f}, {bits:.2f} bits open")


if __name__ == "__main__":
    main()
