"""A LoRA as a value: for each matrix of a model the low-rank update, in our names and row order.

Source: arXiv 2106.09685, section 4.1: W' = W + alpha/rank · up · down.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import ConfigError
from rectiflow.models.lora.homes import mmdit_matrices
from rectiflow.models.mmdit import MMDiTConfig

#: The networks that a LoRA may change: the MM-DiT, and text encoders by their names.
PARTS = ("mmdit", "clip_l", "clip_g", "t5")


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank:
    """Adds alpha/rank · up · down to a matrix, to its rows from `first_row` on.

    `down` is [rank, columns], `up` [rows, rank]; a convolution counts as the matrix
    [out, in·height·width].

    Raises:
        ConfigError: the two do not multiply, are no finite float32, or alpha is not finite.
    """

    # Shapes and types are checked below, in use too.
    down: Tensor
    up: Tensor
    alpha: float
    first_row: int = 0

    def __post_init__(self) -> None:
        down, up = self.down, self.up
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or not down.shape[0]:
            raise ConfigError(
                f"up {list(up.shape)} · down {list(down.shape)} is no low-rank update; up is "
                "[rows, rank], down is [rank, columns], the rank is at least 1"
            )
        if down.dtype != torch.float32 or up.dtype != torch.float32:
            raise ConfigError(f"up is {up.dtype} and down {down.dtype}; both must be torch.float32")
        if not math.isfinite(self.alpha):
            raise ConfigError(f"alpha={self.alpha} must be a finite number")
        if not (down.isfinite().all() and up.isfinite().all()):
            raise ConfigError("up or down holds NaN or infinity; such a LoRA spoils every picture")

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What the product is multiplied by, alpha/rank."""
        return self.alpha / self.rank

    @property
    def rows(self) -> range:
        """The rows of the matrix that change."""
        return range(self.first_row, self.first_row + self.up.shape[0])

    def take(self, rows: range) -> LowRank:
        """The update of some of its rows alone; `rows` are the matrix's."""
        start = rows.start - self.first_row
        return replace(self, up=self.up[start : start + len(rows)], first_row=rows.start)


def join_shared(pairs: Iterable[LowRank]) -> tuple[LowRank, ...]:
    """Pairs of one matrix in the order of rows, neighbours with one `down` and alpha joined.

    Files that know queries, keys and values only as three matrices repeat what they share.
    """
    joined: list[LowRank] = []
    for pair in sorted(pairs, key=lambda pair: pair.first_row):
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.rows.stop == pair.first_row
            and last.alpha == pair.alpha
            and torch.equal(last.down, pair.down)
        ):
            joined[-1] = replace(last, up=torch.cat([last.up, pair.up]))
        else:
            joined.append(pair)
    return tuple(joined)


def stack_pairs(
    pairs: Sequence[LowRank], num_rows: int
) -> tuple[Float[Tensor, "rank columns"], Float[Tensor, "rows rank"]]:
    """(down, up) of one update of all rows that does what the pairs do, where scales are equal.

    The ranks add up; a row of `up` is zero outside its pair's columns.
    """
    down = torch.cat([pair.down for pair in pairs])
    up = down.new_zeros(num_rows, down.shape[0])
    start = 0
    for pair in pairs:
        up[pair.first_row : pair.rows.stop, start : start + pair.rank] = pair.up
        start += pair.rank
    return down, up


@dataclass(frozen=True, kw_only=True, eq=False)
class Lora:
    """The low-rank updates of an MM-DiT and of text encoders.

    Two are equal if they do the same to the same matrices, as their `sha256` tells.

    Args:
        config: the MM-DiT that it is for.
        parts: for each part ("mmdit", "clip_l", "clip_g", "t5") its parameters' names, ours or
            transformers', and their pairs. Pairs of one parameter change different rows: all of
            them, or queries, keys or values.

    Raises:
        ConfigError: nothing changes, or a name, shape or row is not the model's.
    """

    config: MMDiTConfig
    parts: Mapping[str, Mapping[str, tuple[LowRank, ...]]]

    def __post_init__(self) -> None:
        if not any(pairs for part in self.parts.values() for pairs in part.values()):
            raise ConfigError("a LoRA without a single pair changes nothing; give it some")
        for part, updates in self.parts.items():
            if part not in PARTS:
                raise ConfigError(f"a LoRA has no part {part!r}; there are {', '.join(PARTS)}")
            for name, pairs in updates.items():
                if part == "mmdit":
                    _check_rows(name, pairs, self.config)
                elif len(pairs) != 1 or pairs[0].first_row:
                    raise ConfigError(f"{part}: {name} takes one pair, of all its rows")

    @property
    def rank(self) -> int:
        """The largest rank of a pair."""
        return max(pair.rank for _, _, pairs in self.updates() for pair in pairs)

    @cached_property
    def sha256(self) -> str:
        """A hash of what it does: equal hashes, equal updates, whatever file they come from."""
        digest = hashlib.sha256()
        for part, name, pairs in self.updates():
            for pair in pairs:
                shapes = f"{tuple(pair.down.shape)}{tuple(pair.up.shape)}"
                digest.update(f"|{part}:{name}:{pair.first_row}:{pair.alpha!r}:{shapes}|".encode())
                for values in (pair.down, pair.up):
                    plain = values.detach().cpu().contiguous().reshape(-1)
                    digest.update(plain.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lora) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def updates(self) -> list[tuple[str, str, tuple[LowRank, ...]]]:
        """(part, parameter's name, pairs), in the order of parts and names."""
        return [
            (part, name, self.parts[part][name])
            for part in PARTS
            if part in self.parts
            for name in sorted(self.parts[part])
        ]

    def matrix_shape(self, part: str, name: str) -> tuple[int, int]:
        """Rows and columns of the whole matrix that pairs belong to."""
        if part == "mmdit":
            matrix = mmdit_matrices(self.config)[name]
            return matrix.num_rows, matrix.num_columns
        (pair,) = self.parts[part][name]
        return len(pair.rows), pair.down.shape[1]

    def only(self, *parts: str) -> Lora:
        """Itself without its other parts.

        Raises:
            ConfigError: it has none of them.
        """
        kept = {part: updates for part, updates in self.parts.items() if part in parts}
        if not kept:
            raise ConfigError(
                f"the LoRA has no {' or '.join(parts)}; it changes {', '.join(self.parts)}"
            )
        return replace(self, parts=kept)


def _check_rows(name: str, pairs: Sequence[LowRank], config: MMDiTConfig) -> None:
    matrix = mmdit_matrices(config).get(name)
    if matrix is None:
        raise ConfigError(
            f"the {config.title} of depth {config.depth} has no matrix {name}; a LoRA changes "
            "weights of linear maps and of the patch embedder"
        )
    # Queries, keys and values are matrices of their own to some tools, any other is one to all.
    unit, end = matrix.num_rows // len(matrix.entry.diffusers), 0
    for pair in pairs:
        if (
            pair.down.shape[1] != matrix.num_columns
            or pair.first_row % unit
            or pair.rows.stop % unit
            or not end <= pair.first_row < pair.rows.stop <= matrix.num_rows
        ):
            raise ConfigError(
                f"{name} is [{matrix.num_rows}, {matrix.num_columns}]; a pair for rows "
                f"{pair.first_row} to {pair.rows.stop} of {pair.down.shape[1]} columns does not "
                f"fit: rows come in units of {unit}, in order and without overlap"
            )
        end = pair.rows.stop
