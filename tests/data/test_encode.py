"""Folder to store: once per content, the same bits after any history, bad pictures told."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data.parts import (
    HashedText,
    add_picture,
    assert_same_data,
    assert_same_rows,
    encode,
    files_of,
    make_folder,
    picture_bytes,
    random_pixels,
    tiny_autoencoder,
)

from rectiflow.base.errors import StoreError, UserError
from rectiflow.data.encoded_rows import encode_pictures
from rectiflow.data.folder import list_folder
from rectiflow.data.latent_store import LatentStore
from rectiflow.data.records import CuratedSample, images_from_pixels
from rectiflow.models.text.encoded import EncodedText


def test_store_holds_what_the_parts_say(tmp_path: Path) -> None:
    report = encode(make_folder(tmp_path / "folder", 20), tmp_path / "store")
    assert (report.num_samples, report.num_rejected) == (20, 0)
    assert (report.num_latents_encoded, report.num_captions_encoded) == (20, 24)
    assert str(report).endswith(
        "20 samples (20 pictures and 24 captions encoded, the rest was there)"
    )
    assert sorted(files_of(tmp_path / "store")) == [
        "index.parquet", "latents-00000.safetensors", "quarantine.jsonl", "store.json",
        "text-00000.safetensors",
    ]  # fmt: skip
    store = LatentStore(tmp_path / "store")
    assert store.variants == ("full", "terse")
    batch = store.read(torch.tensor([7]), torch.tensor([1]))
    encoded = tiny_autoencoder().encode(images_from_pixels([random_pixels(7)]))
    assert torch.allclose(batch.x0_mean[0].float(), encoded.mean[0], atol=2e-3)
    assert torch.allclose(batch.x0_logvar[0].float(), encoded.logvar[0], atol=2e-3)
    text = HashedText()
    for name, column in batch.encoded_text.items():
        expected = text.state("caption 1", name)
        assert torch.equal(column[0], expected.to(column.dtype))


def test_each_content_is_encoded_once(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 4)
    shutil.copy(folder / "images" / "000.png", folder / "images" / "copy.png")
    with (folder / "captions.jsonl").open("a") as lines:
        lines.write('{"file": "images/copy.png", "captions": {"terse": "caption 1"}}\n')
    text = HashedText()
    report = encode(folder, tmp_path / "store", conditioner=text)
    assert (report.num_samples, report.num_latents_encoded) == (5, 4)
    assert len(text.encoded) == len(set(text.encoded)) == 8
    store = LatentStore(tmp_path / "store")
    assert store.latent_rows.tolist() == [0, 1, 2, 3, 0]
    assert store.captions(4) == {"terse": "caption 1"}


def test_result_does_not_depend_on_batches_shards_or_history(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 21)
    encode(folder, tmp_path / "whole")
    encode(folder, tmp_path / "small", max_shard_bytes=20_000)
    assert len(LatentStore(tmp_path / "small").header.latent_shards) > 1
    assert_same_rows(tmp_path / "whole", tmp_path / "small")
    # The same folder grown in three steps, in another order.
    for start, stop in ((13, 21), (2, 9), (0, 13)):
        grown = tmp_path / "grown"
        for index in range(start, stop):
            if not (grown / f"images/{index:03d}.png").exists():
                add_picture(grown, index)
        encode(grown, tmp_path / "steps")
    assert_same_rows(tmp_path / "whole", tmp_path / "steps")
    assert_same_data(tmp_path / "whole", tmp_path / "steps")
    assert_same_data(tmp_path / "whole", tmp_path / "small")
    rows = [LatentStore(tmp_path / name).latent_rows.tolist() for name in ("whole", "steps")]
    assert rows[0] != rows[1]


def test_bytes_are_deterministic(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 5)
    encode(folder, tmp_path / "a")
    encode(folder, tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_threads_that_decode_change_nothing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 40)
    for index in (7, 23):
        (folder / f"images/{index:03d}.png").write_bytes(b"")
    # The same contents again, near and far.
    for index, copied in ((9, 8), (38, 2), (39, 8)):
        shutil.copy(folder / f"images/{copied:03d}.png", folder / f"images/{index:03d}.png")
    one = encode(folder, tmp_path / "one", num_workers=1, max_shard_bytes=20_000)
    several = encode(folder, tmp_path / "several", num_workers=6, max_shard_bytes=20_000)
    assert (one.num_latents_encoded, one.num_rejected) == (35, 2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "several")
    assert replace(several, store=one.store) == one
    # And go on from rows that are there.
    add_picture(folder, 40)
    report = encode(folder, tmp_path / "several", num_workers=6)
    assert (report.num_samples, report.num_latents_encoded) == (39, 1)


def test_threads_that_decode_end_with_an_error(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 30)
    (folder / "images/003.png").write_bytes(b"")
    with pytest.raises(UserError, match="more than 0 pictures of .* were rejected: images/003"):
        encode(folder, tmp_path / "store", num_workers=4, max_rejected=0)
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())


def test_run_again_encodes_only_what_is_missing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 6)
    encode(folder, tmp_path / "store")
    before = files_of(tmp_path / "store")
    fingerprint = LatentStore(tmp_path / "store").fingerprint
    text = HashedText()
    report = encode(folder, tmp_path / "store", conditioner=text)
    assert (report.num_latents_encoded, report.num_captions_encoded, text.encoded) == (0, 0, [])
    assert files_of(tmp_path / "store") == before

    add_picture(folder, 6, {"terse": "caption 0", "full": "new"})
    (folder / "images" / "002.png").unlink()
    report = encode(folder, tmp_path / "store", conditioner=text)
    assert (report.num_samples, report.num_latents_encoded, text.encoded) == (6, 1, ["new"])
    store = LatentStore(tmp_path / "store")
    assert [store.file(i)[7:10] for i in range(6)] == ["000", "001", "003", "004", "005", "006"]
    assert store.captions(5) == {"full": "new", "terse": "caption 0"}
    assert store.fingerprint != fingerprint


def test_changed_caption_and_changed_picture(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 3)
    encode(folder, tmp_path / "store")
    (folder / "images" / "001.png").write_bytes(picture_bytes(random_pixels(99)))
    lines = (folder / "captions.jsonl").read_text().replace("the full caption 2", "other words")
    (folder / "captions.jsonl").write_text(lines)
    report = encode(folder, tmp_path / "store")
    assert (report.num_latents_encoded, report.num_captions_encoded) == (1, 1)
    encode(folder, tmp_path / "fresh")
    assert_same_rows(tmp_path / "store", tmp_path / "fresh")


def test_other_samples_are_other_data(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 3)
    found = set[str]()

    def note(name: str, **options: object) -> None:
        encode(folder, tmp_path / name, **options)
        found.add(LatentStore(tmp_path / name).fingerprint)

    note("first")
    note("same")
    assert len(found) == 1
    note("other autoencoder", autoencoder=tiny_autoencoder(1))
    note("other text", conditioner=HashedText("other"))
    note("other size", resolution_px=16)
    lines = (folder / "captions.jsonl").read_text()
    (folder / "captions.jsonl").write_text(lines.replace("the full caption 2", "other words"))
    note("other caption")
    (folder / "captions.jsonl").write_text(lines.replace("002.png", "003.png"))
    (folder / "images" / "002.png").rename(folder / "images" / "003.png")
    note("other file")
    (folder / "images" / "003.png").write_bytes(picture_bytes(random_pixels(9)))
    note("other picture")
    assert len(found) == 7


def test_rejections_are_counted_and_listed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 3)
    data = (folder / "images" / "000.png").read_bytes()
    (folder / "images" / "000.png").write_bytes(data[:500])
    (folder / "images" / "001.png").write_bytes(picture_bytes(np.zeros((1, 1, 3), np.uint8)))
    (folder / "extra.png").touch()
    seen: list[tuple[int, int]] = []
    text = HashedText()
    report = encode(
        folder, tmp_path / "store", conditioner=text, progress=lambda *at: seen.append(at)
    )
    assert (report.num_samples, report.num_rejected) == (1, 3)
    assert report.rejected_by_stage == {"decode": 1, "folder": 1, "size": 1}
    assert "3 files rejected (decode 1, folder 1, size 1); reasons in" in str(report)
    assert text.encoded == ["", "caption 2", "the full caption 2"]
    listed = [json.loads(x) for x in (tmp_path / "store/quarantine.jsonl").read_text().splitlines()]
    assert [(line["file"], line["stage"]) for line in listed] == [
        ("extra.png", "folder"), ("images/000.png", "decode"), ("images/001.png", "size"),
    ]  # fmt: skip
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (11, 11)


def test_cut_captions_are_told(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 4)
    text = HashedText(num_words=3)
    report = encode(folder, tmp_path / "store", conditioner=text)
    assert {name: cut.num for name, cut in report.cut_captions.items()} == {
        "clip_l": 4, "clip_g": 4,
    }  # fmt: skip
    assert report.cut_captions["clip_g"].example == "the full caption 0"
    assert (
        '4 of the captions encoded are too long for clip_l, which does not see "0" of '
        '"the full caption 0"\n' in str(report)
    )
    # Only what is new is asked about.
    assert encode(folder, tmp_path / "store", conditioner=text).cut_captions == {}
    assert "too long" not in str(encode(folder, tmp_path / "other"))


def test_samples_that_are_no_longer_listed_are_told(tmp_path: Path) -> None:
    first, second = make_folder(tmp_path / "first", 4), tmp_path / "second"
    for index in (3, 4):
        add_picture(second, index)
    # A name is none of what a picture is.
    (second / "images/004.png").rename(second / "images/000.png")
    lines = (second / "captions.jsonl").read_text().replace("004.png", "000.png")
    (second / "captions.jsonl").write_text(lines)
    assert encode(first, tmp_path / "store").num_unlisted == 0
    report = encode(second, tmp_path / "store")
    assert (report.num_unlisted, report.former_source) == (3, str(first))
    assert f"3 samples of {first} were in the store and no longer are:" in str(report)
    assert encode(second, tmp_path / "store").num_unlisted == 0


def test_a_listing_is_encoded_as_a_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "folder", 3)
    encode(folder, tmp_path / "a")
    listing = list_folder(folder)
    monkeypatch.setattr("rectiflow.data.encode.list_folder", None)
    encode(listing, tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_mended_picture_leaves_quarantine(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 2)
    data = (folder / "images" / "000.png").read_bytes()
    (folder / "images" / "000.png").write_bytes(data[:500])
    assert encode(folder, tmp_path / "store").num_rejected == 1
    (folder / "images" / "000.png").write_bytes(data)
    report = encode(folder, tmp_path / "store")
    assert (report.num_rejected, report.num_latents_encoded) == (0, 1)
    assert (tmp_path / "store" / "quarantine.jsonl").read_bytes() == b""


def test_no_picture_left_is_an_error_without_a_trace(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 3)
    for path in (folder / "images").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(
        UserError, match=r"no picture of .* can be used: images/000\.png: it is not a"
    ) as error:
        encode(folder, tmp_path / "store")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "store").exists()


def test_limit_of_rejections(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 4)
    for index in (1, 2):
        (folder / f"images/{index:03d}.png").write_bytes(b"")
    assert encode(folder, tmp_path / "store", max_rejected=2).num_samples == 2
    with pytest.raises(
        UserError, match=r"more than 1 pictures of .* were rejected: images/001\.png"
    ):
        encode(folder, tmp_path / "other", max_rejected=1)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"resolution_px": 36}, "resolution_px is 36; the autoencoder needs a multiple of 8"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"max_shard_bytes": 0}, "max_shard_bytes is 0; it must be at least 1"),
        ({"num_workers": 0}, "num_workers is 0; it must be from 1 to 256"),
    ],
)
def test_impossible_settings(tmp_path: Path, settings: dict[str, int], text: str) -> None:
    with pytest.raises(UserError, match=text):
        encode(make_folder(tmp_path / "folder", 1), tmp_path / "store", **settings)
    assert not (tmp_path / "store").exists()


def test_other_encoders_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 2)
    encode(folder, tmp_path / "store")
    before = files_of(tmp_path / "store")
    with pytest.raises(StoreError, match="encoded by another autoencoder .* than the one at hand"):
        encode(folder, tmp_path / "store", autoencoder=tiny_autoencoder(1))
    with pytest.raises(StoreError, match="encoded by another text encoder clip_g"):
        encode(folder, tmp_path / "store", conditioner=HashedText("other"))
    with pytest.raises(StoreError, match="another resolution_px: resolution_px 32 there, 16 here"):
        encode(folder, tmp_path / "store", resolution_px=16)
    assert files_of(tmp_path / "store") == before
    # An unfinished store has no header, but its shards say the same.
    (tmp_path / "store" / "store.json").unlink()
    with pytest.raises(StoreError, match="was encoded with another autoencoder: autoencoder"):
        encode(folder, tmp_path / "store", autoencoder=tiny_autoencoder(1))


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 1)
    broken = tiny_autoencoder()
    torch.nn.init.constant_(next(broken.encoder.parameters()), float("nan"))
    with pytest.raises(
        UserError, match=r"the autoencoder for images/000\.png gave mean that is not"
    ):
        encode(folder, tmp_path / "store", autoencoder=broken)

    class Overflowing(HashedText):
        def encode(self, prompts: list[str]) -> EncodedText:
            return EncodedText.from_columns(
                {k: v * 1e6 for k, v in super().encode(prompts).columns().items()}
            )

    with pytest.raises(UserError, match=r"the text encoder for '' gave clip_l\.context"):
        encode(folder, tmp_path / "store", conditioner=Overflowing())


def test_rows_do_not_depend_on_their_batch() -> None:
    samples = [
        CuratedSample(
            file=str(i), pixels=random_pixels(i), size_px=(32, 32), crop_px=(0, 0, 32, 32),
            captions={}, content_hash=str(i),
        )
        for i in range(8)
    ]  # fmt: skip
    autoencoder = tiny_autoencoder()
    together = encode_pictures(autoencoder, samples, batch_size=8)
    alone = encode_pictures(autoencoder, samples[5:6], batch_size=8)[0]
    turned = encode_pictures(autoencoder, samples[::-1], batch_size=8)[2]
    for other in (alone, turned):
        assert torch.equal(together[5].mean, other.mean)
        assert torch.equal(together[5].logvar, other.logvar)


def test_images_span_minus_one_to_one() -> None:
    pixels = np.array([[[0, 255, 51]]], np.uint8)
    assert images_from_pixels([pixels]).flatten().tolist() == pytest.approx([-1.0, 1.0, -0.6])
