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
    norms = torch.linalg.matrix_norm(matrices.float(), keepdim=True).clamp(min=eps)
    x = matrices / norms.to(matrices.dtype)
    rows, cols = x.shape[-2:]
    # A step takes two products with the matrix, or four among squares, which are less from here on.
    # Only in 32 bits: in 16, small singular values drown in a product of the matrix with itself.
    if x.dtype == torch.float32 and 2 * cols > 3 * rows:
        return torch.bmm(_all_steps(torch.bmm(x, x.mT), num_steps), x)
    for _ in range(num_steps):
        x = torch.baddbmm(x, _rest_of_factor(torch.bmm(x, x.mT)), x, beta=QUINTIC[0])
    return x


def _all_steps(gram: Float[Tensor, "n r r"], num_steps: int) -> Float[Tensor, "n r r"]:
    """The product of all steps' factors: polynomials of one Gram matrix, so that they commute."""
    factor = product = _factor(gram)
    for _ in range(num_steps - 1):
        gram = torch.bmm(torch.bmm(factor, gram), factor)
        factor = _factor(gram)
        product = torch.bmm(factor, product)
    return product


def _factor(gram: Float[Tensor, "n r r"]) -> Float[Tensor, "n r r"]:
    """a·1 + b·G + c·G²: a step multiplies x, of Gram matrix G = x·xᵀ, by it."""
    factor = _rest_of_factor(gram)
    factor.diagonal(dim1=-2, dim2=-1).add_(QUINTIC[0])
    return factor


def _rest_of_factor(gram: Float[Tensor, "n r r"]) -> Float[Tensor, "n r r"]:
    _, b, c = QUINTIC
    return torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
