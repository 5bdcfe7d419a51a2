"""Builds the embedded encoders' tokenizers from captions: CLIP-style BPE, T5-style unigram.

Every word of the captions becomes one token; any other text falls back to characters or bytes, so
nothing is ever unknown. Words in double quotes come out letter by letter, so that words never seen
can still be written. Letters lose their case. Saved and loaded by transformers like the released
tokenizers. Sources: arXiv 2103.00020 (byte BPE with `</w>`), arXiv 1910.10683 (unigram, sentinels).
"""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from transformers import PreTrainedTokenizerFast

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
NUM_SENTINELS = 16
MAX_QUOTED_CHARS = 64
_SPACE = "▁"

# A space before the quote stays with it (as `_SPACE`, in the unigram tokenizer).
_QUOTED = f'{_SPACE}?"[^"]{{1,{MAX_QUOTED_CHARS}}}"'
# Applied to the pieces that `_QUOTED` cut out: each character that a closing quote follows.
_QUOTED_CHARACTER = f'[^"](?=[^"]{{0,{MAX_QUOTED_CHARS - 1}}}"\\z)'
_WORD = r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]"


def build_clip_tokenizer(
    captions: Iterable[str], *, length: int, pad: Literal["eos", "first"]
) -> PreTrainedTokenizerFast:
    """Byte-level BPE over lower-cased words that end in `</w>`.

    Args:
        captions: text whose words become whole tokens.
        length: tokens a prompt is cut or padded to, start and end included.
        pad: "eos" pads with the end token as CLIP-L does, "first" with id 0 as SD3's CLIP-G.

    Raises:
        ValueError: the captions hold no word outside quotes.
    """
    words = caption_words(captions)
    merges = _learn_merges(words)
    symbols = _byte_symbols()
    pieces = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    pieces += ["".join(pair) for pair in merges]
    # The end token has the highest id: some implementations find it as the row's maximum.
    vocabulary = {piece: i for i, piece in enumerate([*dict.fromkeys(pieces), BOS, EOS])}
    tokenizer = Tokenizer(
        BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=EOS)
    )
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *_spell_quoted(),
            pre_tokenizers.Split(Regex(_WORD), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # "Ġ" is the byte symbol of a space.
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("</w>", "Ġ"), decoders.ByteLevel(), decoders.Strip(" ", 0, 1)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        special_tokens=[(BOS, vocabulary[BOS]), (EOS, vocabulary[EOS])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=EOS,
        pad_token=EOS if pad == "eos" else symbols[0],
        model_max_length=length,
    )


def build_t5_tokenizer(captions: Iterable[str], *, length: int) -> PreTrainedTokenizerFast:
    """Unigram pieces with ids 0 = pad, 1 = end, 2 = unknown (never needed) and sentinels last.

    Args:
        captions: text whose words become whole tokens.
        length: tokens a prompt is cut or padded to, the end token included.

    Raises:
        ValueError: the captions hold no word outside quotes.
    """
    characters = [chr(code) for code in range(33, 127) if not "A" <= chr(code) <= "Z"]
    whole = [_SPACE + word for word in caption_words(captions)]
    # A whole word scores above any two pieces, so the best segmentation never splits it.
    scored = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    scored += [(piece, -5.0) for piece in dict.fromkeys([*whole, f'{_SPACE}"'])]
    scored += [(piece, -10.0) for piece in [_SPACE, *characters]]
    scored += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(NUM_SENTINELS))]
    scored += [(sentinel, 0.0) for sentinel in sentinels]
    tokenizer = Tokenizer(Unigram(scored, unk_id=2, byte_fallback=True))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always", split=False),
            *_spell_quoted(),
            pre_tokenizers.Split(_SPACE, "merged_with_next"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.ByteFallback(),
            decoders.Metaspace(replacement=_SPACE, prepend_scheme="always", split=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens=sentinels,
        model_max_length=length,
    )


def caption_words(captions: Iterable[str]) -> list[str]:
    """The distinct lower-cased words outside double quotes, sorted.

    Raises:
        ValueError: there is none.
    """
    words: set[str] = set()
    for caption in captions:
        words.update(re.findall(r"[^\W\d_]+", re.sub(r'"[^"]*"', " ", caption).lower()))
    if not words:
        raise ValueError("the captions hold no word outside quotes; a tokenizer needs some text")
    return sorted(words)


def _normalizer() -> normalizers.Normalizer:
    # Prompts typed with typographic quotes mean the same as the captions' straight ones.
    return normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex("[“”]"), '"'),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Lowercase(),
        ]
    )


def _spell_quoted() -> list[pre_tokenizers.PreTokenizer]:
    return [
        pre_tokenizers.Split(Regex(_QUOTED), "isolated"),
        pre_tokenizers.Split(Regex(_QUOTED_CHARACTER), "isolated"),
    ]


def _byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes in CLIP's order, "!" first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Merges, best first, after which each of `words` is one token.

    Byte-pair encoding with every word counted once and ties broken by spelling. The trainer of
    `tokenizers` breaks ties by the order of a hash map, which differs from run to run.
    """
    byte_symbol = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spellings: list[list[str]] = []
    for word in words:
        symbols = list(byte_symbol.pre_tokenize_str(word)[0][0])
        spellings.append([*symbols[:-1], f"{symbols[-1]}</w>"])
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for spelling in spellings for pair in pairwise(spelling)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        spellings = [_merged(spelling, best) for spelling in spellings]
    return merges


def _merged(spelling: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in spelling:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged
