"""Options for released weights, the same in every verb that loads a model."""

import argparse
from pathlib import Path

from rectiflow.cli.options import whole_number
from rectiflow.generation.load_settings import PLACES, LoadSettings

#: What is made of the parts that lie in `PLACES`; the options' names in a namespace.
CHOICES = ("encoders", "t5_tokens", "precision")


def add_released_options(parser: argparse.ArgumentParser) -> None:
    """Adds them as a group."""
    weights = parser.add_argument_group(
        "released weights (MODEL is a file, a folder, or on the Hub)"
    )
    for option, kind, metavar, about in (
        ("--autoencoder", Path, "PATH", "where the autoencoder lies, if not in MODEL"),
        ("--text-encoders", Path, "PATH", "where the text encoders lie, if not in MODEL"),
        ("--tokenizers", Path, "DIR", "a folder with tokenizer, tokenizer_2 and tokenizer_3"),
        ("--encoders", str, "NAMES", "which to use, as in clip_l,clip_g; none: not any"),
        ("--t5-tokens", whole_number(0, 512), "N", "tokens of T5, or zeros where it is left out"),
        ("--precision", str, "TYPE", "what weights are held in: auto, fp32, bf16, fp16"),
    ):
        weights.add_argument(option, type=kind, metavar=metavar, help=about)


def read_load_settings(options: argparse.Namespace) -> LoadSettings:
    """What the options say."""
    given = {name: getattr(options, name) for name in (*PLACES, *CHOICES)}
    if given["encoders"] is not None:
        names = () if given["encoders"] == "none" else given["encoders"].split(",")
        given["encoders"] = tuple(names)
    return LoadSettings(**{name: value for name, value in given.items() if value is not None})
