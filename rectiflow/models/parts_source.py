"""Where the frozen parts around a backbone lie, when they are not those that ship.

A latent store notes what encoded it, and a model what its store notes, so that each can be drawn
with, previewed and encoded further without being told again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PartsSource:
    """Files and folders, or a name on the Hugging Face Hub, and what was made of them.

    `model` holds all parts but those that one of the other three places holds. `encoders` are those
    in use, out of clip_l, clip_g and t5; `t5_tokens` is how many tokens T5 reads and gives, or how
    many zeros stand for it; `precision` is what the text encoders are held and multiplied in.
    """

    model: str
    autoencoder: str | None = None
    text_encoders: str | None = None
    tokenizers: str | None = None
    encoders: tuple[str, ...]
    t5_tokens: int
    precision: str
