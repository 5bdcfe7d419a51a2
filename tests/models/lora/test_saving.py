"""What is saved is what is read again, and what diffusers computes with."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.lora.small_loras import (
    CONFIG,
    EMBEDDER,
    LAST_CONTEXT,
    PROJ,
    QKV,
    diffusers_tensors,
    kohya_tensors,
    pair,
    small_lora,
    values,
    write,
)
from models.published.small_checkpoints import (
    SMALL,
    diffusers_output,
    diffusers_transformer,
    random_mmdit,
)
from models.small_backbones import inputs
from safetensors import safe_open
from safetensors.torch import load_file

from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.models.lora import Lora, merged, read_lora, save_lora
from rectiflow.models.lora.homes import mmdit_matrices
from rectiflow.models.lora.reading import PAIRS_KEY
from rectiflow.models.published import load_mmdit
from rectiflow.models.published.text_configs import RELEASED_TEXT

D = CONFIG.hidden_dim
TEXT = "text_model.encoder.layers.0.self_attn.q_proj.weight"
T5 = "encoder.block.0.layer.0.SelfAttention.q.weight"
SMALL_TEXT = {
    "clip_l": replace(RELEASED_TEXT["clip_l"], width=16, num_layers=1, num_heads=2),
    "t5": replace(RELEASED_TEXT["t5"], width=16, num_layers=1, num_heads=2, head_dim=8),
}


@st.composite
def plans(draw, layout):
    """For some matrices the (first, number of diffusers' tensors, rank, alpha) of their pairs."""
    names = [QKV, PROJ, EMBEDDER, LAST_CONTEXT, "final_layer.linear.weight"]
    cuts = [[(0, 3)], [(1, 1)], [(0, 1), (1, 2)], [(0, 1), (2, 1)]]
    ranks, alphas = st.integers(1, 3), st.floats(-8, 8, allow_nan=False)
    plan = {}
    for name in draw(st.lists(st.sampled_from(names), min_size=1, unique=True)):
        rank, alpha = draw(ranks), draw(alphas)
        plan[name] = [
            # kohya's layout has one alpha for all, so that ranks must agree as well.
            (first, number, rank, alpha)
            if layout == "kohya"
            else (first, number, draw(ranks), draw(alphas))
            for first, number in (draw(st.sampled_from(cuts)) if name == QKV else [(0, 1)])
        ]
    return plan


def planned(plan, layout, seed):
    updates = {}
    for name, cuts in plan.items():
        matrix = mmdit_matrices(CONFIG)[name]
        unit, columns = matrix.num_rows // len(matrix.entry.diffusers), matrix.num_columns
        updates[name] = tuple(
            pair(number * unit, columns, rank=rank, alpha=alpha, first=first * unit, seed=seed + i)
            for i, (first, number, rank, alpha) in enumerate(cuts)
        )
    parts = {"mmdit": updates, "clip_l": {TEXT: (pair(16, 16, alpha=0.1),)}}
    if layout == "kohya":
        parts["t5"] = {T5: (pair(16, 16, rank=1),)}
    return Lora(config=CONFIG, parts=parts)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_reading_gives_what_was_saved(layout, tmp_path_factory):
    @settings(max_examples=12, deadline=None)
    @given(plan=plans(layout), seed=st.integers(0, 10**6))
    def check(plan, seed):
        lora = planned(plan, layout, seed)
        path = tmp_path_factory.mktemp("lora") / "a.safetensors"
        save_lora(path, lora, layout)
        again = read_lora(path, CONFIG, text=SMALL_TEXT)
        assert again == lora
        # The same bytes the second time.
        save_lora(path.with_name("b.safetensors"), again, layout)
        assert path.read_bytes() == path.with_name("b.safetensors").read_bytes()

    check()


def test_from_one_layout_into_the_other_and_back(tmp_path):
    lora = read_lora(write(tmp_path / "a.safetensors", kohya_tensors()), CONFIG)
    save_lora(tmp_path / "b.safetensors", lora, "diffusers")
    between = read_lora(tmp_path / "b.safetensors", CONFIG)
    assert between == lora
    save_lora(tmp_path / "c.safetensors", between, "kohya")
    assert read_lora(tmp_path / "c.safetensors", CONFIG) == lora


def test_kohyas_names_and_shapes_are_kept(tmp_path):
    tensors = kohya_tensors()
    lora = read_lora(write(tmp_path / "a.safetensors", tensors), CONFIG)
    save_lora(tmp_path / "b.safetensors", lora, "kohya")
    saved = load_file(tmp_path / "b.safetensors")
    assert set(saved) == set(tensors)
    assert all(torch.equal(saved[name], value) for name, value in tensors.items())


def test_stacked_pairs_are_right_for_whoever_knows_alpha_over_rank_alone(tmp_path):
    pairs = (pair(D, D, alpha=1.0), pair(D, D, rank=4, first=2 * D, seed=3))
    lora = Lora(config=CONFIG, parts={"mmdit": {QKV: pairs}})
    save_lora(tmp_path / "a.safetensors", lora, "kohya")
    plain = write(tmp_path / "b.safetensors", load_file(tmp_path / "a.safetensors"))
    (whole,) = read_lora(plain, CONFIG).parts["mmdit"][QKV]
    product = whole.scale * whole.up @ whole.down
    for one in pairs:
        expected = one.scale * one.up @ one.down
        assert (product[one.first_row : one.rows.stop] - expected).abs().max() < 1e-6


def test_metadata_is_that_of_diffusers(tmp_path):
    lora = Lora(
        config=CONFIG,
        parts={
            "mmdit": {
                PROJ: (pair(D, D, alpha=1.0),),
                PROJ.replace("0", "1"): (pair(D, D, alpha=1.0),),
                PROJ.replace("0", "2"): (pair(D, D, rank=3, alpha=0.1),),
            },
            "clip_g": {TEXT: (pair(1280, 1280),)},
        },
    )
    save_lora(tmp_path / "a.safetensors", lora)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
        assert file.metadata()["format"] == "pt"
    assert (metadata["transformer.r"], metadata["transformer.lora_alpha"]) == (2, 1.0)
    other = "^transformer_blocks.2.attn.to_out.0"
    assert metadata["transformer.rank_pattern"] == {other: 3}
    assert metadata["transformer.alpha_pattern"] == {other: 0.1}
    assert metadata["text_encoder_2.target_modules"] == [TEXT.removesuffix(".weight")]


# --- parity ---------------------------------------------------------------------------------------


def pipeline(transformer):
    from diffusers import StableDiffusion3Pipeline

    others = ("scheduler", "vae", "image_encoder", "feature_extractor")
    others += tuple(
        f"{kind}{i}" for kind in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")
    )
    return StableDiffusion3Pipeline(transformer=transformer, **dict.fromkeys(others))


@pytest.fixture(params=SMALL)
def both(request, tmp_path):
    """diffusers' transformer and ours with its weights."""
    theirs = diffusers_transformer(SMALL[request.param])
    theirs.save_pretrained(tmp_path / "transformer")
    return theirs, load_mmdit(tmp_path / "transformer")


def outputs_with(lora, ours):
    with torch.no_grad():
        plain = ours(*inputs())
        with merged(ours, [(lora, 1.0)]):
            merged_output = ours(*inputs())
    assert (merged_output - plain).abs().max() > 0.01
    return merged_output


@pytest.mark.parity
def test_diffusers_loads_what_we_save(both, tmp_path):
    theirs, ours = both
    tensors = kohya_tensors(ours.config)
    path = write(tmp_path / "kohya.safetensors", tensors)
    lora = read_lora(path, ours.config)
    # Ranks and alphas that differ from module to module.
    updates = dict(lora.parts["mmdit"])
    updates[PROJ] = (pair(D, D, rank=3, alpha=0.5),)
    lora = Lora(config=ours.config, parts={"mmdit": updates})
    save_lora(tmp_path / "saved" / "pytorch_lora_weights.safetensors", lora)
    pipeline(theirs).load_lora_weights(tmp_path / "saved")
    expected = diffusers_output(theirs, *inputs())
    assert (outputs_with(lora, ours) - expected).abs().max() < 1e-5


@pytest.mark.parity
def test_what_diffusers_saves_is_read_as_diffusers_computes(both, tmp_path):
    from diffusers import StableDiffusion3Pipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    theirs, ours = both
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "to_k", "add_v_proj", "to_out.0", "linear", "proj", "proj_out"],
        rank_pattern={"to_q": 2},
        alpha_pattern={"attn.to_q": 1},
        use_rslora=True,
    )
    theirs.add_adapter(config, "default")
    with torch.no_grad():
        for i, (name, parameter) in enumerate(theirs.named_parameters()):
            if "lora_" in name:
                parameter.copy_(values(*parameter.shape, seed=i))
    StableDiffusion3Pipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(theirs),
        transformer_lora_adapter_metadata=config.to_dict(),
    )
    lora = read_lora(tmp_path / "pytorch_lora_weights.safetensors", ours.config)
    expected = diffusers_output(theirs, *inputs())
    assert (outputs_with(lora, ours) - expected).abs().max() < 1e-5


# --- what is refused ------------------------------------------------------------------------------


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"mine")
    with pytest.raises(UserError, match="it exists; choose another place or remove it"):
        save_lora(tmp_path / "a.safetensors", small_lora())
    assert (tmp_path / "a.safetensors").read_bytes() == b"mine"


def test_an_unknown_layout(tmp_path):
    with pytest.raises(UserError, match="unknown LoRA layout 'peft'; choose among diffusers, koh"):
        unchecked(save_lora)(tmp_path / "a.safetensors", small_lora(), "peft")


def unchecked(function):
    """Without the tests' check of types, which would be first."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def test_diffusers_has_no_place_for_t5(tmp_path):
    lora = Lora(config=CONFIG, parts={"t5": {T5: (pair(4096, 4096),)}})
    with pytest.raises(UserError, match="diffusers loads no LoRA of T5; save it with layout='koh"):
        save_lora(tmp_path / "a.safetensors", lora)
    assert not list(tmp_path.iterdir())


def test_kohya_has_one_scale_for_queries_keys_and_values(tmp_path):
    pairs = (pair(D, D, alpha=1.0), pair(D, D, alpha=2.0, first=D))
    lora = Lora(config=CONFIG, parts={"mmdit": {QKV: pairs}})
    with pytest.raises(UserError, match=r"scales its rows by 0.5, 1, kohya's layout has one alpha"):
        save_lora(tmp_path / "a.safetensors", lora, "kohya")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", f"its {PAIRS_KEY} cannot be read"),
        ('{"MODULE": [[0, 192]]}', f"its {PAIRS_KEY} cannot be read"),
        ('{"MODULE": [[0, 192, 2, 1]]}', "is not stacked as its"),
        ('{"MODULE": [[0, 576, 9, 1]]}', "is not stacked as its"),
        ('{"MODULE": [[0, 192, 2, 1], [192, 192, 2, 1]]}', "is not stacked as its"),
        ('{"MODULE": [[-1, 0, 4, 1]]}', "is not stacked as its"),
    ],
)
def test_stacks_that_are_none(text, message, tmp_path):
    module = "lora_unet_joint_blocks_1_x_block_attn_qkv"
    tensors = {name: t for name, t in kohya_tensors().items() if name.startswith(module)}
    metadata = {PAIRS_KEY: text.replace("MODULE", module)}
    path = write(tmp_path / "a.safetensors", tensors, metadata)
    with pytest.raises(CheckpointError, match=message):
        read_lora(path, CONFIG)


def test_a_small_model_takes_up_what_was_saved(tmp_path):
    save_lora(tmp_path / "a.safetensors", small_lora())
    outputs_with(read_lora(tmp_path / "a.safetensors", CONFIG), random_mmdit(CONFIG))
    assert diffusers_tensors(modules=r".*0\.attn\.to_out\.0").keys() == {
        name.removeprefix("transformer.") for name in load_file(tmp_path / "a.safetensors")
    }
