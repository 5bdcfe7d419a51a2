"""Writes the README's table of figures from measured rows and the shipped parts' cards.

    python docs/readme/table.py [--check]

With `--check` nothing is written, and the exit code says whether the table is up to date.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
SHIPPED = ROOT / "rectiflow" / "models" / "shipped"
MODELS = ("tiny", "tiny-mmdit")
START, END = "<!-- measured -->\n", "<!-- /measured -->\n"
WITH_AND_WITHOUT_T5 = (["clip_l", "clip_g", "t5"], ["clip_l", "clip_g"])
TASKS = {
    "single_object": "one object",
    "colors": "colours",
    "two_object": "two",
    "counting": "counting",
    "color_attr": "attributes",
    "position": "position",
    "typography": "words",
}


def last_row(subject: str, **wanted: Any) -> dict[str, Any]:
    """The newest row of a benchmark whose fields have these values."""
    lines = (RESULTS / f"{subject}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return next(r for r in reversed(rows) if all(r.get(k) == v for k, v in wanted.items()))


def card(part: str) -> dict[str, Any]:
    """A shipped part's card."""
    return json.loads((SHIPPED / part / "card.json").read_text(encoding="utf-8"))


def interval(score: dict[str, Any]) -> str:
    """A lenient score with its interval."""
    lenient = score["lenient"]
    return f"{lenient['mean']:.2f} [{lenient['low']:.2f}, {lenient['high']:.2f}]"


def by_task(scores: dict[str, Any]) -> str:
    """Lenient scores of the seen tasks, slash by slash."""
    return " / ".join(f"{scores['tasks'][task]['seen']['lenient']['mean']:.2f}" for task in TASKS)


def asked(scores: dict[str, Any]) -> str:
    """How many pictures a task, of how many prompts in all."""
    seen, unseen = (scores["overall"][split]["num_prompts"] for split in ("seen", "unseen"))
    return f"{scores['per_task']} pictures a task, of {seen} prompts, unseen {unseen}"


def seconds(value: float) -> str:
    """Minutes and seconds."""
    return f"{int(value) // 60} min {int(value) % 60} s"


def both_compiled(row: dict[str, Any]) -> str:
    """How much faster a training step is where both networks' blocks are compiled."""
    theirs, ours = (row["step_ms"][f"{name} compiled"] for name in ("diffusers", "rectiflow"))
    return f"{theirs['median'] / ours['median']:.2f}×"


def rows_of_model(model: dict[str, Any]) -> list[tuple[str, str]]:
    """What the card of a shipped model says of its scores and of what they took."""
    scores, data = model["scores"], model["data"]
    # Its own and those of the models that it began from, one from another.
    stages = [data]
    while origin := stages[-1]["start_from"]:
        stages.append(origin["provenance"])
    num_pictures = sum(stage["images_seen"] for stage in stages)
    training_s = sum(stage["training_s"] for stage in stages)
    title = model["recipe"]["backbone"]["kind"].removesuffix("Config").replace("MMDiT", "MM-DiT")
    return [
        (
            f"shipped `{scores['model']}` ({title}), overall ({asked(scores)}; "
            f"{num_pictures:,} pictures, {seconds(training_s)})",
            f"{interval(scores['overall']['seen'])}; unseen combinations "
            f"{interval(scores['overall']['unseen'])}",
        ),
        (f"– {' / '.join(TASKS.values())}", by_task(scores)),
    ]


def make_table() -> str:
    """The table in Markdown, and what it was measured on."""
    demo, models = last_row("demo", minutes=10.0), [card(name) for name in MODELS]
    small, full = (card("autoencoder")["scores"][world] for world in ("small", "full"))
    objects = [task for task in TASKS if task != "typography"]
    steps, in_bf16 = (
        [
            last_row("training_step", case=case, their_dtype=dtype)
            for case in ("demo", "depth 8, 256+154 tokens")
        ]
        for dtype in ("torch.float32", "bfloat16 autocast")
    )
    store, cold = last_row("store_to_batches"), last_row("cold_start")["ms"]
    abstraction = [
        last_row("formulation", what=what)["overhead"] for what in ("loss", "4 guided Euler steps")
    ]

    pictures, halves = (
        [last_row("pipeline", precision=p, encoders=e) for e in WITH_AND_WITHOUT_T5]
        for p in ("fp32", "bf16")
    )
    joint = [last_row("joint_block", held_in="torch.bfloat16", side_px=side) for side in (256, 512)]
    decoding, encoding = (last_row("autoencoder", way=w, side_px=512) for w in ("decode", "encode"))
    memory = last_row("memory")

    def least(scores: dict[str, float]) -> str:
        return f"{min(scores[task] for task in objects):.0%}".replace("%", " %")

    def percent(value: float) -> str:
        return f"{value:.0%}".replace("%", " %")

    machine = demo["environment"]
    installed = "installed before" if demo["was_installed"] else "installation included"
    rows = [
        (
            f"`make demo`, {installed}",
            f"{seconds(demo['wall_s'])}, of which {seconds(demo['training_s'])} training "
            f"({demo['steps']:,} steps, {demo['images_per_s']:.0f} images/s)",
        ),
        (
            f"the demo's model, a {demo['backbone']}, overall ({asked(demo['scores'])})",
            f"{interval(demo['scores']['overall']['seen'])}; unseen combinations "
            f"{interval(demo['scores']['overall']['unseen'])}",
        ),
        (f"– {' / '.join(TASKS.values())}", by_task(demo["scores"])),
        *(row for model in models for row in rows_of_model(model)),
        (
            "autoencoder, objects read back from reconstructions, worlds `small` / `full`",
            f"{least(small)} / {least(full)}",
        ),
        (
            "– words, `small` / `full`; PSNR",
            f"{percent(small['typography'])} / {percent(full['typography'])}; "
            f"{small['psnr_db']:.1f} / {full['psnr_db']:.1f} dB",
        ),
        (
            "training step against diffusers' transformer: demo size / depth 8 with 256+154 "
            f"tokens ({steps[0]['dtype'].removeprefix('torch.')})",
            " / ".join(f"{row['speedup']['rectiflow']:.2f}×" for row in steps)
            + "; our blocks compiled "
            + " / ".join(f"{row['speedup']['rectiflow compiled']:.2f}×" for row in steps)
            + ", both compiled "
            + " / ".join(both_compiled(row) for row in steps),
        ),
        (
            f"– in bfloat16 on an {in_bf16[0]['environment']['processor']} that has it, nothing "
            "compiled",
            " / ".join(f"{row['speedup']:.2f}×" for row in in_bf16),
        ),
        (
            "a whole picture against `StableDiffusion3Pipeline`, same weights, depth 8, 256 px, "
            f"{pictures[0]['steps']} guided steps in float32, {halves[0]['steps']} with weights in "
            "bfloat16: with T5 / with zeros in its place",
            " / ".join(f"{row['speedup']:.2f}×" for row in pictures)
            + "; "
            + " / ".join(f"{row['speedup']:.1f}×" for row in halves)
            + " (diffusers emulates bfloat16 on this processor)",
        ),
        (
            "one joint block of SD3-medium's size, weights in bfloat16, against diffusers': "
            "256 px / 512 px; in int8",
            " / ".join(f"{row['speedup']['rectiflow']:.1f}×" for row in joint)
            + "; "
            + " / ".join(f"{row['speedup']['rectiflow int8']:.1f}×" for row in joint)
            + " (diffusers emulates bfloat16 on this processor)",
        ),
        (
            "SD3's autoencoder at 512 px against diffusers': decode / encode",
            f"{decoding['speedup']:.2f}× / {encoding['speedup']:.2f}×",
        ),
        (
            f"peak memory over the weights' size, {memory['model']} in bfloat16 without T5, "
            f"{memory['side_px']} px: after loading / after drawing",
            " / ".join(f"{memory['peak_over_weights'][when]:.2f}×" for when in ("loaded", "drawn")),
        ),
        (
            "what the formulations' abstraction adds: to a training step / to a guided Euler step",
            " / ".join(f"{share:.1%}".replace("%", " %") for share in abstraction),
        ),
        ("store → batches against what training consumes", f"{store['times_training']:.0f}×"),
        (
            "`rectiflow sample tiny …` from cold, a new prompt / one met before / "
            "`rectiflow --help`",
            " / ".join(
                f"{cold[name]['median'] / 1e3:.1f} s"
                for name in ("sample", "sample_known_prompt", "help")
            ),
        ),
    ]
    lines = ["| figure | result |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    about = (
        f"The demo on {machine['num_cores']} cores of an {machine['processor']}\n"
        f"({machine['cpu_capability']}), PyTorch {machine['packages']['torch'].split('+')[0]}; "
        "ratios each in one run, on the machine that its row in `benchmarks/results` names. Scores "
        "on\nthe world `small`, combinations seen in training, lenient verdict, 95 % bootstrap "
        "intervals over prompts, or\nover pictures where a task has no other prompts (Wilson's "
        "where all are alike). Made by `docs/readme/table.py`."
    )
    return "\n".join([about, "", *lines]) + "\n"


def main() -> None:
    """Put the table between its marks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    renewed = f"{before}{START}{make_table()}{END}{after}"
    if parser.parse_args().check:
        sys.exit(renewed != text and "README.md is not up to date: python docs/readme/table.py")
    README.write_text(renewed, encoding="utf-8")


if __name__ == "__main__":
    main()
