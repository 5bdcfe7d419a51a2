"""`rectiflow sample MODEL PROMPT`: pictures for a prompt, for a list of them, or one once more."""

import argparse
from pathlib import Path
from typing import Any

from rectiflow.base.errors import UserError
from rectiflow.cli.drawing_options import (
    SAMPLING_DETAILS,
    SETTINGS,
    add_drawing_options,
    open_changed_model,
    open_model,
    read_changes,
    read_places,
    read_settings,
)
from rectiflow.cli.options import Verbs, add_seed, add_verb, whole_number
from rectiflow.cli.released_options import CHOICES
from rectiflow.generation.load_settings import LoraFile

_DETAILS = f"""\
Picture i has seed S+i, and is the same alone or among others.

{SAMPLING_DETAILS}
  --image FILE [--mask FILE]     draws from a picture: over all of it, or where the mask is white
  --lora FILE[:WEIGHT]           adds a LoRA, once for each; weight 1 is as trained
  --variation SEED[:AMOUNT]      turns the noise a little towards that of another seed; -n draws so
                                 many variations of one picture, with seeds SEED, SEED+1, ...

  rectiflow sample MODEL --prompts FILE     a list: .txt with a prompt a line, or .jsonl or .csv,
                                            whose lines may have settings, pictures and LoRAs of
                                            their own; the same command completes what was stopped
  rectiflow sample --replay PICTURE         draws a picture once more from what its file says; exit
                                            code 0 if it is identical, 1 if it differs; what it was
                                            drawn from is found beside it or here by its name, or
                                            by --image, --mask and --lora
"""

_DEFAULT_OUT = Path("samples")


def add_parser(verbs: Verbs) -> None:
    """Adds the verb. Which of MODEL and PROMPT are needed depends on the options, so `run` says."""
    parser = add_verb(
        verbs,
        "sample",
        run,
        usage="rectiflow sample MODEL PROMPT [-n N] [--seed S] [--out DIR] [--steps N] ...",
        summary="draw pictures for a prompt",
        details=_DETAILS,
        takes_overrides=True,
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help='a run folder, released weights, "tiny", …'
    )
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="what to draw")
    parser.add_argument(
        "-n", type=whole_number(1), metavar="N", help="number of pictures (default: 1)"
    )
    add_seed(parser)
    # None where it is not given: a replay takes no seed.
    parser.set_defaults(seed=None)
    parser.add_argument("--negative", metavar="TEXT", help="what to lead away from")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"folder of the PNG files (default: {_DEFAULT_OUT})"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a list of prompts")
    parser.add_argument("--replay", type=Path, metavar="PICTURE", help="a picture to draw again")
    parser.add_argument(
        "--model", dest="replay_model", metavar="MODEL", help="where the model of --replay lies now"
    )

    start = parser.add_argument_group("pictures to start from")
    for option, kind, metavar, about in (
        ("--image", Path, "FILE", "the picture to draw from; sizes follow it unless given"),
        ("--mask", Path, "FILE", "white where the picture is painted anew, black where it stays"),
        ("--strength", float, "X", "part of the steps that are taken, 1 is all (default: 0.6)"),
        ("--variation", _variation, "SEED[:AMOUNT]", "noise turned so far (default: 0.2)"),
    ):
        start.add_argument(option, type=kind, metavar=metavar, help=about)
    add_drawing_options(parser)


def _variation(text: str) -> dict[str, Any]:
    """SEED or SEED:AMOUNT, as fields of a `Variation`."""
    seed, colon, amount = text.partition(":")
    try:
        given: dict[str, Any] = {"seed": int(seed)}
        return given | {"amount": float(amount)} if colon else given
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected a seed, or seed:amount as in 7:0.2, got {text!r}"
        ) from error


_NOT_OF_A_REPLAY = (
    *("n", "seed", "negative", "prompts", "strength", "variation"),
    *("quantize", "compile", "cuda_graphs"),
    *SETTINGS,
    *CHOICES,
)


def run(options: argparse.Namespace) -> int:
    """Draws the pictures and prints where each lies."""
    words = _words(options)
    if options.replay is not None:
        return _replay(options, words)
    for name in ("mask", "strength"):
        if getattr(options, name) is not None and options.image is None:
            raise UserError(f"--{name} goes with --image, the picture to draw from")
    if options.replay_model is not None:
        raise UserError("--model goes with --replay; otherwise the model is the first word")
    names = ["MODEL"] if options.prompts else ["MODEL", "PROMPT"]
    if len(words) < len(names):
        missing = ", ".join(names[len(words) :])
        options.parser.error(f"the following arguments are required: {missing}")
    if len(words) > len(names):
        if options.prompts and len(words) == 2:
            raise UserError(f"both --prompts and the prompt {words[1]!r} were given; leave one out")
        options.parser.refuse(words[len(names)])
    for path in _draw(options, *words):
        print(path)
    return 0


def _words(options: argparse.Namespace) -> list[str]:
    """MODEL and PROMPT, if given. After an option argparse leaves the second one over."""
    words = [word for word in (options.model, options.prompt) if word is not None]
    rest: list[str] = options.overrides
    end = rest.index("--") if "--" in rest else len(rest)
    for word in rest[:end]:
        if word.startswith("-") and word != "-":
            options.parser.refuse(word)
    return words + rest[:end] + rest[end + 1 :]


def _draw(options: argparse.Namespace, model_name: str, prompt: str | None = None) -> list[Path]:
    from dataclasses import replace

    from rectiflow.generation.draw_list import draw_list
    from rectiflow.generation.edit_files import read_edit
    from rectiflow.generation.editing import STRENGTH
    from rectiflow.generation.folder import refuse_file, sample_to_folder
    from rectiflow.generation.prompt_list import read_prompt_list
    from rectiflow.generation.variations import Variation
    from rectiflow.recipes.progress import Counter

    settings, edit = read_settings(options), None
    if options.image is not None:
        strength = STRENGTH if options.strength is None else options.strength
        edit = read_edit(options.image, options.mask, strength=strength)
        height_px, width_px = edit.source.shape[:2]
        settings = {"height_px": height_px, "width_px": width_px} | settings
    out = options.out or _DEFAULT_OUT
    refuse_file(out)
    entries = read_prompt_list(options.prompts) if options.prompts else []
    # The lines of a list may have LoRAs of their own.
    model = (open_model if entries else open_changed_model)(options, model_name)
    usual: dict[str, Any] = {
        "count": options.n or 1,
        "seed": options.seed or 0,
        "out": out,
        "negative_prompt": options.negative or "",
        "settings": replace(model.settings, **settings),
        "edit": edit,
        "variation": options.variation and Variation(**options.variation),
    }
    with Counter("pictures") as progress:
        if prompt is not None:
            return sample_to_folder(model, prompt, **usual, progress=progress)
        changes = read_changes(options)
        lines = draw_list(model, entries, **usual, changes=changes, progress=progress)
    return list(dict.fromkeys(path for paths in lines for path in paths))


def _replay(options: argparse.Namespace, words: list[str]) -> int:
    given = [
        f"-{'-' * (len(name) > 1)}{name.replace('_', '-')}"
        for name in _NOT_OF_A_REPLAY
        if getattr(options, name) is not None
    ]
    if words or given:
        raise UserError(
            f"--replay takes model, prompt and settings from the picture; leave out "
            f"{', '.join(words[:1] + given)} (a model that lies elsewhere now: --model)"
        )

    from rectiflow.generation.folder import refuse_file, save_picture
    from rectiflow.generation.replay import replay
    from rectiflow.generation.replay_files import ReplayFiles

    if options.out is not None:
        refuse_file(options.out)
        if options.out.resolve() == options.replay.resolve().parent:
            raise UserError(
                f"the picture itself lies in {options.out} and would be written over; choose "
                "another folder for what is drawn again"
            )
    result = replay(
        options.replay,
        model=options.replay_model,
        places=read_places(options),
        files=ReplayFiles(image=options.image, mask=options.mask, loras=_replay_loras(options)),
    )
    print(f"{options.replay}: {result}")
    if options.out is not None:
        path = options.out / result.redrawn.file_name
        save_picture(path, result.image, result.redrawn)
        print(path)
    return 0 if result.is_identical else 1


def _replay_loras(options: argparse.Namespace) -> tuple[Path, ...]:
    """Files alone: how strongly each was added, the picture says."""
    paths: list[Path] = []
    for text in options.lora or ():
        file = LoraFile.parse(text)
        if file.path != Path(text):
            raise UserError(
                f"--replay takes the weights of LoRAs from the picture; give --lora {file.path}"
            )
        paths.append(file.path)
    return tuple(paths)
