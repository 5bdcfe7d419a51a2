"""What is done to a loaded model before it draws, all at once and in one order.

Before the walk of a prompt. LoRAs come first, for the 8 bits are made of the weights with them;
compiled is what comes of both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rectiflow.base.errors import ConfigError
from rectiflow.generation.load_settings import LoraFile
from rectiflow.generation.loras import WeightedLora, with_loras
from rectiflow.generation.model import Model
from rectiflow.generation.quantized import with_quantization
from rectiflow.models.compilation import with_compiled_blocks
from rectiflow.models.offloading import is_offloaded


@dataclass(frozen=True, kw_only=True)
class ModelChanges:
    """LoRAs to merge, 8 bits to multiply in (int8 on a CPU, fp8 on a GPU), blocks to compile.

    `cuda_graphs` records the compiled network on an NVIDIA GPU (`models.cuda_graphs`).

    Raises:
        ConfigError: `cuda_graphs` without `is_compiled`.
    """

    loras: tuple[LoraFile | WeightedLora, ...] = ()
    quantization: str | None = None
    is_compiled: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        if self.cuda_graphs and not self.is_compiled:
            raise ConfigError(
                "CUDA graphs are recorded of a compiled model; compile it too, or leave them out"
            )

    def of(self, model: Model) -> Model:
        """The model so changed, beside the given one, which stays as it is.

        Raises:
            UserError, CheckpointError: as `with_loras`.
            ConfigError: as `with_quantization` and `with_compiled_blocks`; or blocks are to be
                compiled whose modulation lies in a file.
        """
        if self.is_compiled and is_offloaded(model.backbone):
            raise ConfigError(
                "compiled blocks compute their modulation in every step, and would read its weights"
                " from a file each time; leave out offload_modulation, or do not compile"
            )
        changed = with_quantization(with_loras(model, self.loras), self.quantization)
        if self.is_compiled:
            changed = replace(
                changed,
                backbone=with_compiled_blocks(changed.backbone, cuda_graphs=self.cuda_graphs),
            )
        return changed
