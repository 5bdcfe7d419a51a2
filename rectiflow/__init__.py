"""Stable Diffusion 3 as one straight walk: data, MM-DiT, rectified flow, sampling, scoring.

Nothing heavy is imported here, so that `rectiflow --help` answers at once. Parts are imported
from their own packages: `from rectiflow.models.mmdit import MMDiT`. `rectiflow.Pipeline` alone is
at hand here too.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rectiflow.generation.pipeline import Pipeline as Pipeline

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Pipeline":
        from rectiflow.generation.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
