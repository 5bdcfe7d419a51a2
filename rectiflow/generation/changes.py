"""What is done to a loaded model before it draws, all at once and in one order.

Before the walk of a prompt. LoRAs come first, for the 8 bits are made of the weights with them.
"""

from __future__ import annotations

from dataclasses import dataclass

from rectiflow.generation.load_settings import LoraFile
from rectiflow.generation.loras import WeightedLora, with_loras
from rectiflow.generation.model import Model
from rectiflow.generation.quantized import with_quantization


@dataclass(frozen=True, kw_only=True)
class ModelChanges:
    """LoRAs to merge, and the 8 bits to multiply in ("int8" on a CPU, "fp8" on a GPU)."""

    loras: tuple[LoraFile | WeightedLora, ...] = ()
    quantization: str | None = None

    def of(self, model: Model) -> Model:
        """The model so changed, beside the given one, which stays as it is.

        Raises:
            UserError, CheckpointError: as `with_loras`.
            ConfigError: as `with_quantization`.
        """
        return with_quantization(with_loras(model, self.loras), self.quantization)
