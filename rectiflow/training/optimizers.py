"""AdamW and Muon: configs that build the object which moves a backbone's weights.

On the walk of a sample: step -> here, the last stop of a training step. Both name their state
after the parameters (`exp_avg.<name>`, `momentum.<name>`) so that checkpoints are plain
safetensors. Where a model is cut among processes, each moves its own parts; for Muon the matrices
meet for a moment.
Source: AdamW arXiv 1711.05101; Muon, https://kellerjordan.github.io/posts/muon/ , its step size
beside AdamW's arXiv 2502.16982 section 2.2.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from rectiflow.base.config import LATER
from rectiflow.base.errors import ConfigError
from rectiflow.distributed.sharding import own_part, own_parts, part_for, share_work, whole
from rectiflow.models.frame import Backbone
from rectiflow.models.layers.linear import StackedLinear
from rectiflow.training.newton_schulz import orthogonalize

NamedParameters = list[tuple[str, nn.Parameter]]


class Optimizer(ABC):
    """Moves the weights by their gradients; its whole state is a flat dictionary of tensors."""

    @abstractmethod
    def step(self, factor: float) -> None:
        """Update every weight in place, at `factor` in (0, 1] of the peak learning rate.

        May overwrite the gradients.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """The state by name; the tensors are the live ones, so that copying into them loads."""

    def working_bytes(self, num_processes: int = 1) -> int:
        """About the most that a step holds beside state and gradients, in each process."""
        return 0


#: Factors on the learning rate by the name of a parameter or of a module that holds some, such as
#: {"context_embedder": 0.1}; of several names the longest counts, 0 freezes, all others are at 1.
Rates = dict[str, float]


def _check(config: AdamW | Muon, averages: dict[str, float]) -> None:
    """Refuse numbers that make no step, or a step into nowhere."""
    kind = type(config).__name__
    for name in ("learning_rate", "weight_decay"):
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= 0.0):
            raise ConfigError(f"{kind}'s {name} is {value}; give a number of at least 0")
    for name, share in averages.items():
        if not 0.0 <= share < 1.0:
            raise ConfigError(f"{kind}'s {name} is {share}; give a number from 0 to below 1")
    for prefix, rate in (config.rates or {}).items():
        if not (math.isfinite(rate) and rate >= 0.0):
            raise ConfigError(
                f"{kind}'s rates give {prefix!r} the factor {rate}; give a number of at least 0, "
                "where 0 freezes"
            )


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW for all parameters; weights of linear and convolution layers are decayed.

    `rates` are factors on the learning rate of some of them (`Rates`), and so on their decay.

    Raises:
        ConfigError: a number out of its range.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.01
    rates: Rates | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        _check(self, {f"betas[{i}]": beta for i, beta in enumerate(self.betas)})
        if not (math.isfinite(self.eps) and self.eps > 0.0):
            raise ConfigError(f"AdamW's eps is {self.eps}; give a number above 0, such as 1e-8")

    def build(self, model: nn.Module, dtype: torch.dtype) -> AdamWOptimizer:
        """An optimizer over all of `model`; the update itself is float32 whatever `dtype`.

        Raises:
            ConfigError: one of the `rates` is for no parameter of a backbone.
        """
        _check_names(self.rates, model)
        return AdamWOptimizer(self, model, trainable(model), self.rates)


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Muon for the blocks' matrices, `rest` for all other parameters.

    `orthogonalize_modulation` and `orthogonalize_convolutions` give it more: the maps to the
    blocks' shifts, scales and gates; and all convolutions but the one that reads the latents, as
    matrices of [out, in·height·width].
    `scaling` turns an orthogonal update into a step of `learning_rate`: "spectral" multiplies
    by max(1, rows / cols)^0.5 (rates near 0.02); "match_adamw" by 0.2 * max(rows, cols)^0.5,
    which gives the update AdamW's usual root mean square, so that AdamW's rates carry over.
    `rates` are factors on the learning rates (`Rates`) of matrices and of the rest alike.

    Raises:
        ConfigError: a number out of its range.
    """

    learning_rate: float = 1e-3
    momentum: float = 0.95
    weight_decay: float = 0.01
    num_newton_schulz_steps: int = 5
    scaling: Literal["spectral", "match_adamw"] = "match_adamw"
    orthogonalize_modulation: bool = False
    orthogonalize_convolutions: bool = field(default=False, metadata=LATER)
    rest: AdamW = field(default_factory=AdamW)
    rates: Rates | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        _check(self, {"momentum": self.momentum})
        if self.rest.rates:
            raise ConfigError(
                f"Muon's rest has rates {self.rest.rates}; give them to Muon itself "
                "(optimizer.rates), where they are for all parameters"
            )
        if self.num_newton_schulz_steps < 1:
            raise ConfigError(
                f"Muon's num_newton_schulz_steps is {self.num_newton_schulz_steps}; it must be at "
                "least 1 (5 are usual)"
            )

    def build(self, model: nn.Module, dtype: torch.dtype) -> MuonOptimizer:
        """An optimizer over all of `model`; Newton-Schulz runs in `dtype`.

        Raises:
            ConfigError: one of the `rates` is for no parameter of a backbone.
        """
        _check_names(self.rates, model)
        return MuonOptimizer(self, model, dtype)


OptimizerConfig = AdamW | Muon


def trainable(model: nn.Module) -> NamedParameters:
    """The parameters that have gradients, in the model's order."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def rate_of(name: str, rates: Rates | None) -> float:
    """The factor on a parameter's learning rate: that of the longest name which it begins with."""
    known = rates or {}
    parts = name.split(".")
    beginnings = (".".join(parts[:number]) for number in range(len(parts), 0, -1))
    return next((known[beginning] for beginning in beginnings if beginning in known), 1.0)


def _check_names(rates: Rates | None, model: nn.Module) -> None:
    # An alignment's projector is moved by the same config, and has other names.
    if not rates or not isinstance(model, Backbone):
        return
    names = [name for name, _ in trainable(model)]
    for prefix in rates:
        if not any(f"{name}.".startswith(f"{prefix}.") for name in names):
            near = dict.fromkeys(name.partition(".")[0] for name in names)
            raise ConfigError(
                f"rates name {prefix!r}, but no parameter that is trained begins with it; names "
                f"begin with {', '.join(near)}, and go on as {names[-1]} does"
            )


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """The gradient of a parameter that took part in the backward pass."""
    assert parameter.grad is not None
    return parameter.grad


def is_decayed(model: nn.Module, name: str) -> bool:
    """Whether weight decay applies: weights of linear and convolution layers only.

    Not a LoRA's, whose rank holds it back already; Muon decays whatever matrix it moves.
    """
    owner, _, leaf = name.rpartition(".")
    return leaf == "weight" and isinstance(model.get_submodule(owner), (nn.Linear, nn.Conv2d))


class AdamWOptimizer(Optimizer):
    """torch's fused AdamW kernel over some of a model's parameters.

    The kernel itself and not torch.optim.AdamW, whose first use imports the compiler: seconds.
    """

    def __init__(
        self,
        config: AdamW,
        model: nn.Module,
        parameters: NamedParameters,
        rates: Rates | None,
    ) -> None:
        self._config = config
        self._names = [name for name, _ in parameters]
        self._parameters = [parameter for _, parameter in parameters]
        device = next((parameter.device for parameter in self._parameters), None)
        self._num_steps = torch.zeros((), dtype=torch.float32, device=device)
        self._means = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self._parameters]
        # Places in the lists by weight decay and factor: one call of the kernel each. What is
        # frozen is in none.
        self._groups: dict[tuple[float, float], list[int]] = {}
        for i, name in enumerate(self._names):
            weight_decay = config.weight_decay if is_decayed(model, name) else 0.0
            rate = rate_of(name, rates)
            if rate > 0.0:
                self._groups.setdefault((weight_decay, rate), []).append(i)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        config = self._config
        self._num_steps += 1
        for (weight_decay, rate), places in self._groups.items():
            torch._fused_adamw_(  # pyright: ignore[reportPrivateUsage]
                own_parts(self._parameters[i] for i in places),
                own_parts(gradient_of(self._parameters[i]) for i in places),
                own_parts(self._means[i] for i in places),
                own_parts(self._squares[i] for i in places),
                [],
                [self._num_steps for _ in places],
                lr=config.learning_rate * factor * rate,
                beta1=config.betas[0],
                beta2=config.betas[1],
                weight_decay=weight_decay,
                eps=config.eps,
                amsgrad=False,
                maximize=False,
            )

    def state(self) -> dict[str, Tensor]:
        means = {f"exp_avg.{n}": v for n, v in zip(self._names, self._means, strict=True)}
        squares = {f"exp_avg_sq.{n}": v for n, v in zip(self._names, self._squares, strict=True)}
        return {"num_steps": self._num_steps} | means | squares


@dataclass(kw_only=True)
class _Matrix:
    """A hidden weight that Muon moves: `num_parts` stacked matrices of `rows` x `cols`.

    A convolution's filters are the rows of its one matrix. `rate` is a factor on Muon's.
    """

    name: str
    weight: nn.Parameter
    momentum: Tensor
    num_parts: int
    rows: int
    cols: int
    rate: float

    @property
    def is_tall(self) -> bool:
        return self.rows > self.cols

    @property
    def wide_shape(self) -> tuple[int, int]:
        return min(self.rows, self.cols), max(self.rows, self.cols)

    def wide(self, values: Tensor) -> Tensor:
        """A tensor shaped like the weight, as [num_parts, short, long]."""
        # No view: convolutions may leave gradients in another order of memory.
        parts = values.reshape(self.num_parts, self.rows, self.cols)
        return parts.mT if self.is_tall else parts

    def add(self, update: Tensor, factor: float) -> None:
        """Move the weight by factor·update; `update` is shaped as `wide` gives it."""
        full = (update.mT if self.is_tall else update).reshape(self.weight.shape)
        own_part(self.weight).add_(part_for(full, self.weight), alpha=factor)

    def step_scale(self, scaling: str) -> float:
        if scaling == "spectral":
            return math.sqrt(max(1.0, self.rows / self.cols))
        return 0.2 * math.sqrt(max(self.rows, self.cols))


def hidden_matrices(model: nn.Module, config: Muon) -> Iterable[tuple[str, nn.Parameter, int]]:
    """What `config` orthogonalizes: (name, weight, number of matrices stacked in it).

    Fused projections are several maps that share an input (`StackedLinear`): queries, keys and
    values, and the modulation's shifts, scales and gates; each is orthogonalized by itself.
    """
    blocks = cast(nn.Module, model.blocks)
    in_blocks = {id(parameter) for parameter in blocks.parameters()}
    for name, parameter in trainable(model):
        owner = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.Conv2d):
            is_taken = config.orthogonalize_convolutions and not name.startswith("x_embedder.")
        else:
            is_taken = id(parameter) in in_blocks and (
                config.orthogonalize_modulation or "adaLN_modulation" not in name
            )
        if is_taken and parameter.ndim > 1:
            yield name, parameter, owner.num_parts if isinstance(owner, StackedLinear) else 1


class MuonOptimizer(Optimizer):
    """All matrices of one shape are orthogonalized in one batched Newton-Schulz."""

    def __init__(self, config: Muon, model: nn.Module, dtype: torch.dtype) -> None:
        self._config = config
        self._matrices: list[_Matrix] = []
        for name, weight, num_parts in hidden_matrices(model, config):
            rows, cols = weight.shape[0] // num_parts, weight[0].numel()
            self._matrices.append(
                _Matrix(
                    name=name,
                    weight=weight,
                    momentum=torch.zeros_like(weight),
                    num_parts=num_parts,
                    rows=rows,
                    cols=cols,
                    rate=rate_of(name, config.rates),
                )
            )
        mine = {matrix.name for matrix in self._matrices}
        self._rest = AdamWOptimizer(
            config.rest,
            model,
            [(n, p) for n, p in trainable(model) if n not in mine],
            config.rates,
        )
        self._moving = [matrix for matrix in self._matrices if matrix.rate > 0.0]
        self._groups: dict[tuple[int, int], list[_Matrix]] = {}
        for matrix in self._moving:
            self._groups.setdefault(matrix.wide_shape, []).append(matrix)
        self._dtype = dtype

    @torch.no_grad()
    def step(self, factor: float) -> None:
        if self._moving:
            self._move_matrices(self._config.learning_rate * factor)
        self._rest.step(factor)

    def _move_matrices(self, rate: float) -> None:
        config = self._config
        weights = own_parts(m.weight for m in self._moving)
        gradients = own_parts(gradient_of(m.weight) for m in self._moving)
        momenta = own_parts(m.momentum for m in self._moving)
        torch._foreach_lerp_(momenta, gradients, 1.0 - config.momentum)  # pyright: ignore[reportPrivateUsage]
        # Nesterov: look ahead along the momentum. Overwrites the gradients, which end here.
        torch._foreach_lerp_(gradients, momenta, config.momentum)  # pyright: ignore[reportPrivateUsage]
        kept = [1.0 - rate * matrix.rate * config.weight_decay for matrix in self._moving]
        torch._foreach_mul_(weights, kept)  # pyright: ignore[reportPrivateUsage]
        for group in self._groups.values():
            self._move_group(group, rate)

    def _move_group(self, group: list[_Matrix], rate: float) -> None:
        """Take the step of all matrices of one shape, whose gradients look ahead by now."""
        # Made for the group and let go with it: all of them kept would be half of AdamW's state,
        # and uncut in each process.
        stack = torch.empty(
            sum(matrix.num_parts for matrix in group),
            *group[0].wide_shape,
            dtype=self._dtype,
            device=group[0].weight.device,
        )
        offset = 0
        for matrix in group:
            gradient = whole(gradient_of(matrix.weight))
            stack[offset : offset + matrix.num_parts] = matrix.wide(gradient)
            offset += matrix.num_parts
        updates = share_work(
            partial(orthogonalize, num_steps=self._config.num_newton_schulz_steps),
            stack,
            like=group[0].weight,
        ).split([matrix.num_parts for matrix in group])
        for matrix, update in zip(group, updates, strict=True):
            matrix.add(update, -rate * matrix.rate * matrix.step_scale(self._config.scaling))

    def state(self) -> dict[str, Tensor]:
        momenta = {f"momentum.{matrix.name}": matrix.momentum for matrix in self._matrices}
        return momenta | self._rest.state()

    def working_bytes(self, num_processes: int = 1) -> int:
        sizes = (sum(m.weight.numel() for m in group) for group in self._groups.values())
        stack = self._dtype.itemsize * max(sizes, default=0)
        # `share_work` pads and joins stacks; `orthogonalize` holds up to three more, of its share.
        num_stacks = 1 if num_processes == 1 else 3
        return num_stacks * stack + 3 * stack // num_processes
