"""Text: prompts → three encoders' states → one conditioning, as SD3 assembles it.

`encoded` needs no encoder and no transformers: training from a store imports only that.
`conditioner` holds the encoders, `tokenizers` builds those of the embedded ones.
"""

from rectiflow.models.text.encoded import COLUMNS, ENCODERS, ClipStates, EncodedText, assemble

__all__ = ["COLUMNS", "ENCODERS", "ClipStates", "EncodedText", "assemble"]
