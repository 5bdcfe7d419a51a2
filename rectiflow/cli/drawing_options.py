"""Options of the verbs that draw: how to sample, and what is done to the model before."""

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rectiflow.cli.options import add_deterministic, positive_number, whole_number
from rectiflow.cli.released_options import add_released_options, read_load_settings
from rectiflow.generation.load_settings import LoadSettings, LoraFile

if TYPE_CHECKING:
    from rectiflow.generation.changes import ModelChanges
    from rectiflow.generation.model import Model

#: For a verb's details.
SAMPLING_DETAILS = """\
How pictures are sampled is the model's own way unless told otherwise:
  --solver    euler, heun, midpoint, rk4, dpm++2m, dormand-prince:tolerance=1e-3,
              ancestral:eta=0.5 (new noise at each step)
  --grid      linear, released, training-times, dynamic
  --guidance  cfg, zero-star, apg, auto:weaker=MODEL, skip-layers:layers=7,8,9,
              perturb-attention:layers=5, none; around them, or around cfg:
              interval:low=0.2,high=0.9, rescale:amount=0.7, as in zero-star+rescale
"""

_SAMPLING = (
    ("--steps", whole_number(1, 1000), "N", "number of steps"),
    ("--guidance-scale", float, "X", "how strongly to guide; 1 is not at all"),
    ("--shift", positive_number, "X", "shift of the grid towards noise; 1 is none"),
    ("--height", whole_number(1), "PX", "height of a picture"),
    ("--width", whole_number(1), "PX", "width of a picture"),
    ("--solver", str, "NAME", "how a step is made"),
    ("--grid", str, "NAME", "where steps end"),
    ("--guidance", str, "NAME", "how the prompt is stressed"),
)
#: The sampling options' names in a namespace.
SETTINGS = tuple(option.removeprefix("--").replace("-", "_") for option, *_ in _SAMPLING)


def add_drawing_options(parser: argparse.ArgumentParser) -> None:
    """Adds them, and those of released weights, in three groups."""
    sampling = parser.add_argument_group("sampling")
    for option, kind, metavar, about in _SAMPLING:
        sampling.add_argument(option, type=kind, metavar=metavar, help=about)
    changes = parser.add_argument_group("changes to the model")
    changes.add_argument(
        "--lora", action="append", metavar="FILE[:WEIGHT]", help="a LoRA; may be given repeatedly"
    )
    changes.add_argument(
        "--quantize", metavar="TYPE", help="8 bits that blocks multiply in: int8 (CPU) or fp8 (GPU)"
    )
    changes.add_argument(
        "--compile",
        action="store_true",
        # None where it is not given, as for the others: a replay takes neither.
        default=None,
        help="run blocks as compiled graphs: pays off for many pictures of a size",
    )
    changes.add_argument(
        "--cuda-graphs",
        action="store_true",
        default=None,
        help="with --compile on an NVIDIA GPU: repeat each step's kernels as one",
    )
    parser.add_argument(
        "--offload-modulation",
        action="store_true",
        help="leave a third of the weights in a file, and read it once for each drawing",
    )
    parser.add_argument("--device", metavar="NAME", help="where to draw: cpu (default), cuda, …")
    add_deterministic(parser)
    add_released_options(parser)


def read_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `SamplingSettings` that the options change."""
    from rectiflow.generation.settings import SETTING_NAMES

    given = {name: getattr(options, name) for name in SETTINGS}
    named = {name: SETTING_NAMES[name] for name, value in given.items() if value is not None}
    return {field: parse(given[name]) for name, (field, parse) in named.items()}


def read_changes(options: argparse.Namespace) -> "ModelChanges":
    """What is to be done to the model; on stderr, what of it takes long."""
    from rectiflow.generation.changes import ModelChanges

    loras = tuple(LoraFile.parse(text) for text in options.lora or ())
    if options.compile:
        print(
            "rectiflow: the first picture of each size takes longer: it compiles", file=sys.stderr
        )
    return ModelChanges(
        loras=loras,
        quantization=options.quantize,
        is_compiled=bool(options.compile),
        cuda_graphs=bool(options.cuda_graphs),
    )


def read_places(options: argparse.Namespace) -> LoadSettings:
    """Which parts to load, from where, onto what, and what of them stays in a file."""
    return replace(
        read_load_settings(options),
        offload_modulation=options.offload_modulation,
        device=options.device,
    )


def open_model(options: argparse.Namespace, name: str) -> "Model":
    """The model without the changes; on stderr, which text encoders it comes without."""
    from rectiflow.generation.model import load_model
    from rectiflow.models.text.encoded import ENCODERS

    model = load_model(name, read_places(options))
    absent = [name for name in ENCODERS if name not in model.conditioner.tokenizers]
    if absent and options.encoders is None:
        print(f"rectiflow: the model comes without {', '.join(absent)}", file=sys.stderr)
    return model


def open_changed_model(options: argparse.Namespace, name: str) -> "Model":
    """The model with the changes; on stderr, how far 8 bits move it."""
    changes, plain = read_changes(options), open_model(options, name)
    model = changes.of(plain)
    if model.quantization is not None:
        print(f"rectiflow: {model.quantization}", file=sys.stderr)
    return model
