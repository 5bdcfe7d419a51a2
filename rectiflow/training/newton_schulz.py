"""Nearest (semi-)orthogonal matrices of a whole stack at once, by Newton-Schulz steps.

On the walk of a sample: step -> optimizers (Muon) -> here.
Source: Muon, https://kellerjordan.github.io/posts/muon/ ; the quintic's coefficients are its.
"""

import torch
from jaxtyping import Float
from torch import Tensor

# p(s) = a s + b s^3 + c s^5 lifts small singular values fastest; after five steps all lie
# in about [0.7, 1.2] and no longer converge to exactly 1, which training does not mind.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(
    matrices: Float[Tensor, "n rows cols"], *, num_steps: int = 5, eps: float = 1e-7
) -> Float[Tensor, "n rows cols"]:
    """U V^T of each matrix U S V^T, roughly: singular values end in about [0.7, 1.2].

    Computes in the type of `matrices`. Cheapest when rows <= cols, so that callers transpose.
    """
    a, b, c = QUINTIC
    norms = torch.linalg.matrix_norm(matrices.float(), keepdim=True).clamp(min=eps)
    x = matrices / norms.to(matrices.dtype)
    for _ in range(num_steps):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x
