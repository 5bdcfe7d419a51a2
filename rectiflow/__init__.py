"""Stable Diffusion 3 as one straight walk: data, MM-DiT, rectified flow, sampling, scoring.

Nothing heavy is imported here, so that `rectiflow --help` answers at once. Parts are imported
from their own packages: `from rectiflow.models.mmdit import MMDiT`.
"""

__version__ = "0.1.0"
