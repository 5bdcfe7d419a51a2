"""LoRAs for SD3-class models: read from any of the usual files, stacked, merged, saved.

`reading` makes a `Lora` of a file (`keys` and `homes` know the tools' names, `peft_config` PEFT's
alpha), `low_rank` is the value, `merging` changes weights and back, `saving` writes either layout;
`layers` are what trains one.
"""

from rectiflow.models.lora.homes import text_sizes
from rectiflow.models.lora.layers import add_lora, check_lora, lora_of, lora_rank, lora_tensors
from rectiflow.models.lora.low_rank import Lora, LowRank
from rectiflow.models.lora.merging import Originals, merge, merged, sharing_copy, unmerge
from rectiflow.models.lora.reading import read_lora
from rectiflow.models.lora.saving import LoraLayout, save_lora

__all__ = [
    "Lora",
    "LoraLayout",
    "LowRank",
    "Originals",
    "add_lora",
    "check_lora",
    "lora_of",
    "lora_rank",
    "lora_tensors",
    "merge",
    "merged",
    "read_lora",
    "save_lora",
    "sharing_copy",
    "text_sizes",
    "unmerge",
]
