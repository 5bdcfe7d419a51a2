"""The assembly against diffusers' SD3 pipeline and the real tokenizer classes."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers.models import BPE
from transformers import CLIPTokenizer, T5Tokenizer

from rectiflow.models.text import assemble
from rectiflow.models.text.conditioner import TextConditioner

pytestmark = pytest.mark.parity

PROMPTS = ["a red circle above a blue square", "", "a " * 40, '😀 the word "CAT"']


def _pipeline(conditioner: TextConditioner, *, with_t5: bool = True):
    from diffusers import StableDiffusion3Pipeline

    encoders, tokenizers = conditioner.encoders, conditioner.tokenizers
    return StableDiffusion3Pipeline(
        transformer=_module(joint_attention_dim=96, sample_size=8, patch_size=2),
        vae=None,
        scheduler=None,
        text_encoder=encoders["clip_l"],
        tokenizer=tokenizers["clip_l"],
        text_encoder_2=encoders["clip_g"],
        tokenizer_2=tokenizers["clip_g"],
        text_encoder_3=encoders["t5"] if with_t5 else None,
        tokenizer_3=tokenizers["t5"],
    )


def _module(**config: int) -> torch.nn.Module:
    module = torch.nn.Module()
    module.config = SimpleNamespace(**config)
    return module


def _assert_assembly_equals(conditioner: TextConditioner, pipeline) -> None:
    context, null_context, pooled, null_pooled = pipeline.encode_prompt(
        prompt=PROMPTS,
        prompt_2=None,
        prompt_3=None,
        device="cpu",
        max_sequence_length=conditioner.config.t5.length,
    )
    ours = assemble(conditioner.encode(PROMPTS))
    null = assemble(conditioner.null().expand(len(PROMPTS)))
    for got, expected in (
        (ours.context, context),
        (ours.pooled, pooled),
        (null.context, null_context),
        (null.pooled, null_pooled),
    ):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_assembly_equals_diffusers(random_conditioner):
    _assert_assembly_equals(random_conditioner, _pipeline(random_conditioner))


def test_left_out_t5_equals_diffusers(random_conditioner):
    whole = random_conditioner
    names = ("clip_l", "clip_g")
    part = TextConditioner(
        whole.config,
        {name: whole.encoders[name] for name in names},
        {name: whole.tokenizers[name] for name in names},
    )
    _assert_assembly_equals(part, _pipeline(whole, with_t5=False))


def test_released_tokenizer_classes_work_through_the_same_class(random_conditioner):
    whole = random_conditioner
    model = whole.tokenizers["clip_l"].backend_tokenizer.model
    assert isinstance(model, BPE)
    vocabulary = whole.tokenizers["clip_l"].get_vocab()
    clip = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12)
    clip_g = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12, pad_token="!")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    t5 = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=16)
    conditioner = TextConditioner(
        whole.config, dict(whole.encoders), {"clip_l": clip, "clip_g": clip_g, "t5": t5}
    )
    _assert_assembly_equals(conditioner, _pipeline(conditioner))
    assert [name for name, _ in conditioner.truncations("abcdefghijklm")] == ["clip_l", "clip_g"]
    assert len(set(conditioner.fingerprints().values())) == 3
