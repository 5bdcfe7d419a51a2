"""A small random autoencoder, a text encoder that hashes captions, folders of pictures."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rectiflow.data.encode import EncodeReport, encode_folder
from rectiflow.data.folder import FolderListing
from rectiflow.data.latent_store import LatentStore
from rectiflow.data.records import EncodedBatch
from rectiflow.data.split import split_store
from rectiflow.models.autoencoder import Autoencoder, AutoencoderConfig
from rectiflow.models.text.encoded import EncodedText

RESOLUTION_PX = 32
SHAPES = {
    "clip_l.context": (2, 6),
    "clip_l.pooled": (6,),
    "clip_g.context": (2, 10),
    "clip_g.pooled": (10,),
    "t5.context": (3, 20),
}


def tiny_autoencoder(seed: int = 0) -> Autoencoder:
    config = AutoencoderConfig(
        base_channels=8,
        channel_multipliers=(1, 1, 1, 1),
        num_blocks=1,
        num_norm_groups=4,
        use_mid_attention=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Autoencoder(config).eval()


class HashedText:
    """States drawn from a caption's hash; counts what it encodes.

    Both CLIPs say that they hold `num_words` words; the states are those of the whole text.
    """

    def __init__(self, name: str = "hashed", num_words: int = 100) -> None:
        self.name, self.num_words = name, num_words
        self.encoded: list[str] = []

    def encode(self, prompts: Sequence[str]) -> EncodedText:
        self.encoded += prompts
        return EncodedText.from_columns(
            {
                column: torch.stack([self.state(prompt, column) for prompt in prompts])
                for column in SHAPES
            }
        )

    def state(self, prompt: str, column: str) -> torch.Tensor:
        digest = hashlib.sha256(f"{column}:{prompt}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        return torch.from_numpy(generator.standard_normal(SHAPES[column], dtype=np.float32))

    def truncations(self, prompt: str) -> list[tuple[str, str]]:
        lost = " ".join(prompt.split()[self.num_words :])
        return [(encoder, lost) for encoder in ("clip_l", "clip_g") if lost]

    def fingerprints(self) -> dict[str, str]:
        return {
            encoder: hashlib.sha256(f"{self.name}:{encoder}".encode()).hexdigest()
            for encoder in ("clip_l", "clip_g", "t5")
        }


class MeanColors:
    """Features of 2×2 patches: their mean colors, and a sixth of them."""

    def __init__(self, scale: float = 1.0) -> None:
        self._scale = scale

    def patch_features(self, images: torch.Tensor) -> torch.Tensor:
        means = self._scale * torch.nn.functional.adaptive_avg_pool2d(images, 2)
        return torch.cat([means, means / 6], dim=1)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"mean colors {self._scale}".encode()).hexdigest()


def random_pixels(index: int, side_px: int = RESOLUTION_PX) -> np.ndarray:
    generator = np.random.default_rng(index)
    return generator.integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)


def picture_bytes(pixels: np.ndarray, format: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format, **options)
    return data.getvalue()


def add_picture(folder: Path, index: int, captions: Mapping[str, str] | None = None) -> None:
    """Picture `index` with a line in captions.jsonl; its `full` caption is its own."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    file = f"images/{index:03d}.png"
    (folder / file).write_bytes(picture_bytes(random_pixels(index)))
    texts = captions or {"terse": f"caption {index % 3}", "full": f"the full caption {index}"}
    line = {"file": file, "caption": texts.get("terse", ""), "captions": dict(texts)}
    with (folder / "captions.jsonl").open("a") as lines:
        lines.write(json.dumps(line) + "\n")


def make_folder(folder: Path, num: int) -> Path:
    """`num` pictures that fit; terse captions repeat, full ones do not."""
    for index in range(num):
        add_picture(folder, index)
    return folder


def encode(folder: Path | FolderListing, out: Path, **options: object) -> EncodeReport:
    """Encode with the parts of this module unless others are given."""
    return encode_folder(
        folder,
        out,
        options.pop("autoencoder", None) or tiny_autoencoder(),
        options.pop("conditioner", None) or HashedText(),
        **({"resolution_px": RESOLUTION_PX} | options),
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_all(path: Path) -> dict[str, tuple[torch.Tensor, ...]]:
    """Every sample's content by file name, whatever shards it lies in."""
    store = LatentStore(path)
    rows: dict[str, tuple[torch.Tensor, ...]] = {}
    for variant, name in enumerate(store.variants):
        batch: EncodedBatch = store.read(
            torch.arange(len(store)), torch.full((len(store),), variant)
        )
        for i in range(len(store)):
            text = tuple(column[i] for column in batch.encoded_text.values())
            rows[f"{store.file(i)}:{name}"] = (batch.x0_mean[i], batch.x0_logvar[i], *text)
    return rows


def assert_same_rows(first: Path, second: Path) -> None:
    one, other = read_all(first), read_all(second)
    assert one.keys() == other.keys()
    for name in one:
        assert all(torch.equal(a, b) for a, b in zip(one[name], other[name], strict=True))


def assert_same_data(first: Path, second: Path) -> None:
    """Runs on either go on with the other, and hold out the same samples."""
    one, other = LatentStore(first), LatentStore(second)
    assert one.fingerprint == other.fingerprint
    splits = [split_store(s.content_hashes, num_validation=5, seed=0) for s in (one, other)]
    assert torch.equal(splits[0].validation, splits[1].validation)
