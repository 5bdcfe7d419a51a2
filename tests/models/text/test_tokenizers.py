import pytest
from transformers import AutoTokenizer

from rectiflow.models.text.tokenizers import (
    build_clip_tokenizer,
    build_t5_tokenizer,
    caption_words,
)

CAPTIONS = [
    "a photo of three red circles above a blue square",
    "a red circle top left, a green cross bottom right",
    'the word "HOUSE" in red',
]
AWKWARD = [
    "",
    "  \t ",
    "😀🏳️‍🌈",
    "naïve Ünï 日本語",
    "\x00\x07",
    "don't <0x41> 12.5%",
    '"' * 7,
    "x" * 10_000,
    '"' + "y" * 10_000,
    "z" * 10_000 + '"',
]


@pytest.fixture
def clip():
    return build_clip_tokenizer(CAPTIONS, length=16, pad="eos")


@pytest.fixture
def t5():
    return build_t5_tokenizer(CAPTIONS, length=16)


def _pieces(tokenizer, text: str) -> list[str]:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tokenizer.convert_ids_to_tokens(ids)


def test_caption_words_are_whole_tokens(clip, t5):
    text = "a photo of three red circles, a green cross"
    words = text.replace(",", " ,").split()
    assert _pieces(clip, text) == [f"{word}</w>" for word in words]
    assert _pieces(t5, text) == ["," if word == "," else f"▁{word}" for word in words]


def test_quoted_words_are_spelled_even_if_they_are_caption_words(clip, t5):
    for word in ("cat", "red", "circles"):
        text = f'the word "{word}" in red'
        spelled = [f"{letter}</w>" for letter in word]
        quote = '"</w>'
        assert _pieces(clip, text) == [
            "the</w>", "word</w>", quote, *spelled, quote, "in</w>", "red</w>",
        ]  # fmt: skip
        assert _pieces(t5, text) == ["▁the", "▁word", '▁"', *word, '"', "▁in", "▁red"]


def test_case_space_and_typographic_quotes_do_not_matter(clip, t5):
    for tokenizer in (clip, t5):
        expected = tokenizer('the word "cat" in red')["input_ids"]
        assert tokenizer("  THE word\n“Cat”  in Red ")["input_ids"] == expected


def test_quoted_letters_lie_apart_from_unquoted_words(clip):
    assert _pieces(clip, 'red "red" red') == [
        "red</w>", '"</w>', "r</w>", "e</w>", "d</w>", '"</w>', "red</w>",
    ]  # fmt: skip


@pytest.mark.parametrize("text", AWKWARD, ids=lambda text: repr(text[:12]))
def test_any_text_encodes_without_unknown_tokens(clip, t5, text):
    assert clip.eos_token_id not in clip(text, verbose=False)["input_ids"][1:-1]
    assert t5.unk_token_id not in t5(text, verbose=False)["input_ids"]


def test_unseen_text_decodes_to_itself(clip, t5):
    text = "xylophones 😀 and naïve 日本 zebras"
    for tokenizer in (clip, t5):
        ids = tokenizer(text, verbose=False)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_clip_frames_and_pads_as_sd3(clip):
    second = build_clip_tokenizer(CAPTIONS, length=16, pad="first")
    bos, eos = clip.bos_token_id, clip.eos_token_id
    assert eos == len(clip) - 1 == max(clip.get_vocab().values())
    for tokenizer, pad in ((clip, eos), (second, 0)):
        ids = tokenizer("", padding="max_length")["input_ids"]
        assert ids == [bos, eos] + [pad] * 14
    assert second.convert_ids_to_tokens(0) == "!"


def test_t5_ids_and_sentinels(t5):
    assert (t5.pad_token_id, t5.eos_token_id, t5.unk_token_id) == (0, 1, 2)
    assert t5("", padding="max_length")["input_ids"] == [1] + [0] * 15
    assert t5.convert_tokens_to_ids("<extra_id_0>") == len(t5) - 1
    assert t5.convert_tokens_to_ids("<extra_id_1>") == len(t5) - 2


def test_truncation_keeps_the_end_token(clip, t5):
    for tokenizer in (clip, t5):
        ids = tokenizer("red " * 50, truncation=True, max_length=16)["input_ids"]
        assert len(ids) == 16
        assert ids[-1] == tokenizer.eos_token_id


def test_building_depends_on_the_set_of_words_only(clip, t5):
    again = build_clip_tokenizer(CAPTIONS[::-1] * 2, length=16, pad="eos")
    assert again.backend_tokenizer.to_str() == clip.backend_tokenizer.to_str()
    again = build_t5_tokenizer(CAPTIONS[::-1] * 2, length=16)
    assert again.backend_tokenizer.to_str() == t5.backend_tokenizer.to_str()


def test_saved_tokenizers_load_as_themselves(clip, t5, tmp_path):
    for tokenizer in (clip, t5):
        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
        for text in [*CAPTIONS, *AWKWARD[:7]]:
            assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.pad_token_id == tokenizer.pad_token_id


def test_words_come_from_outside_quotes():
    assert caption_words(['The word "CAT" in red', "a red ring"]) == [
        "a", "in", "red", "ring", "the", "word",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no word outside quotes"):
        caption_words(['"CAT"', "12"])
