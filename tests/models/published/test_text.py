"""Text encoders in checkpoints say what transformers' own folders say."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from rectiflow.base.errors import CheckpointError, UserError
from rectiflow.models.published import convert, open_checkpoint, save_single_file
from rectiflow.models.published.header import read_safetensors
from rectiflow.models.published.text_configs import RELEASED_TEXT, T5TextSize
from rectiflow.models.published.text_loading import load_conditioner
from rectiflow.models.shipped import shipped_path
from rectiflow.models.text.loading import load_text_folder

PROMPTS = ["a red circle", "two small squares above a star", ""]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The embedded encoders in one file of the released layout."""
    path = tmp_path_factory.mktemp("text") / "encoders.safetensors"
    save_single_file(path, open_checkpoint(shipped_path("text")).parts)
    return path


def states(conditioner):
    return conditioner.encode(PROMPTS).columns()


@pytest.mark.parity
@pytest.mark.parametrize("kind", RELEASED_TEXT)
def test_released_names_are_those_of_transformers(kind):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    size = RELEASED_TEXT[kind]
    with torch.device("meta"):
        if isinstance(size, T5TextSize):
            model = T5EncoderModel(T5Config(**size.to_transformers()))
        else:
            model = CLIPTextModelWithProjection(CLIPTextConfig(**size.to_transformers()))
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert size.wanted(state) == state
    counts = {"clip_l": 123_650_304, "clip_g": 694_659_840, "t5": 4_762_310_656}
    assert sum(p.numel() for p in model.parameters()) == counts[kind]


def test_a_single_file_encodes_as_the_folder_does(single):
    ours = load_conditioner(single, tokenizers=shipped_path("text"), t5_tokens=16)
    expected = states(load_text_folder(shipped_path("text")))
    for name, found in states(ours).items():
        assert (found - expected[name]).abs().max() < 1e-5, name


def test_there_and_back_and_some_encoders_alone(single, tmp_path):
    convert(single, tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == single.read_bytes()
    only = load_conditioner(
        tmp_path / "folder", tokenizers=shipped_path("text"), encoders=["clip_g"], t5_tokens=16
    )
    assert only.config.clip_l.width == 64
    assert only.encode(["a"]).clip_l.context.abs().max() == 0


def test_the_identity_stands_for_a_missing_projection(single, tmp_path):
    name = "text_encoders.clip_l.transformer.text_projection.weight"
    state = load_file(single)
    state.pop(name)
    plain = tmp_path / "plain.safetensors"
    save_file(state, plain, metadata=read_safetensors(single).metadata)
    convert(plain, tmp_path / "folder")
    stored = load_file(tmp_path / "folder" / "text_encoder" / "model.safetensors")
    assert torch.equal(stored["text_projection.weight"], torch.eye(64).bfloat16())
    convert(tmp_path / "folder", tmp_path / "again.safetensors")
    again = load_file(tmp_path / "again.safetensors")
    assert set(again) == set(state)
    assert all(torch.equal(again[n], tensor) for n, tensor in state.items())
    for path in (plain, tmp_path / "folder"):
        ours = load_conditioner(
            path, tokenizers=shipped_path("text"), encoders=["clip_l"], t5_tokens=16
        )
        assert torch.equal(ours.encoders["clip_l"].text_projection.weight, torch.eye(64))


def test_t5_in_eight_bits_and_under_its_other_name(single, tmp_path):
    prefix = "text_encoders.t5xxl.transformer."
    state = load_file(single)
    narrow, wide = dict(state), dict(state)
    for name in [name for name in state if name.startswith(prefix)]:
        rounded = state[name].to(torch.float8_e4m3fn)
        wide[name] = rounded.float()
        del narrow[name]
        narrow[name.replace("shared", "encoder.embed_tokens")] = rounded
    found: list[torch.Tensor] = []
    for name, tensors in {"narrow.safetensors": narrow, "wide.safetensors": wide}.items():
        save_file(tensors, tmp_path / name, metadata=read_safetensors(single).metadata)
        conditioner = load_conditioner(
            tmp_path / name, tokenizers=shipped_path("text"), encoders=["t5"], t5_tokens=16
        )
        found.append(conditioner.encode(PROMPTS).t5)
    assert found[0].std() > 0.01
    assert torch.equal(*found)


def test_bare_files_are_known_by_their_tensors(single, tmp_path):
    for kind, prefix in (("t5", "t5xxl"), ("clip_l", "clip_l")):
        prefix = f"text_encoders.{prefix}.transformer."
        state = {k.removeprefix(prefix): v for k, v in load_file(single).items() if prefix in k}
        save_file(state, tmp_path / f"{kind}.safetensors")
        assert set(open_checkpoint(tmp_path / f"{kind}.safetensors").parts) == {kind}
    # As in the file of a whole CLIP from which the picture's half was taken out.
    save_file(state | {"logit_scale": torch.zeros(())}, tmp_path / "clip.safetensors")
    found = open_checkpoint(tmp_path / "clip.safetensors")
    assert (set(found.parts), found.unknown) == ({"clip_l"}, ("logit_scale",))


def test_what_is_missing_is_named(single, tmp_path):
    with pytest.raises(UserError, match="unknown text encoder 'clip'; choose among clip_l, clip_g"):
        load_conditioner(single, tokenizers=shipped_path("text"), encoders=["clip"])
    state = load_file(single)
    name = "text_encoders.clip_g.transformer.text_projection.weight"
    state.pop(name)
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks text_projection\.weight, which every text"):
        open_checkpoint(tmp_path / "cut.safetensors")
    state["text_encoders.clip_g.transformer.scaled_fp8"] = torch.zeros(1)
    state[name] = torch.zeros(96, 96)
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(
        CheckpointError, match="holds a text encoder CLIP-G of 3 .* in fp8 with a scale"
    ):
        open_checkpoint(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("num_attention_heads", 0, "has 0 as num_attention_heads, no whole number from 1 on"),
        ("num_attention_heads", 7, "is not cut into num_attention_heads=7"),
        ("num_attention_heads", "2", "has '2' as num_attention_heads"),
        ("hidden_act", "none", "hidden_act='none' is none of quick_gelu, gelu"),
        ("hidden_act", ["gelu"], "holds no text encoder CLIP-L of a known size"),
        ("eos_token_id", None, "has None as eos_token_id, no whole number from 0 on"),
    ],
)
def test_a_config_that_transformers_would_fail_with_is_refused(key, value, text, single, tmp_path):
    convert(single, tmp_path / "folder")
    path = tmp_path / "folder" / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=text):
        open_checkpoint(tmp_path / "folder")
