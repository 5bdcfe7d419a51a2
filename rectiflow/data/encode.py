"""Encodes a folder of captioned pictures into a latent store, or completes one.

On the walk of a sample: folder → curation → here → latent store. Each distinct picture and each
distinct caption is encoded once, and a row has the same bits in whichever run it was encoded, as
long as `batch_size` is the same: kernels choose how to add by the shape of the whole batch.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from rectiflow.base.errors import StoreError, UserError
from rectiflow.data.buckets import Bucket, nearest_bucket
from rectiflow.data.caption_files import CaptionEntry
from rectiflow.data.curation import Curation, content_hash
from rectiflow.data.encoded_rows import (
    PictureEncoder,
    PromptEncoder,
    caption_hash,
    encode_captions,
    encode_pictures,
    latent_row,
)
from rectiflow.data.folder import FolderListing, list_folder, load_sample
from rectiflow.data.records import CuratedSample, RawSample, Rejection
from rectiflow.data.store_format import QUARANTINE_FILE, read_header, read_index
from rectiflow.data.store_writer import StoreWriter, open_store_writer
from rectiflow.models.autoencoder import Autoencoder
from rectiflow.models.parts_source import PartsSource

MAX_SHARD_BYTES = 16 * 2**20
#: Pictures that the autoencoder sees at once, which have no more pixels together.
BATCH_SIZE, PIXELS_AT_ONCE = 16, 2**20
_TEXT_CHUNK = 64
_MAX_SHOWN = 120

#: Threads that read and decode for an accelerator unless told otherwise, and the most of any.
USUAL_WORKERS, MOST_WORKERS = 16, 256
#: Pictures that wait decoded for the encoder, for each thread.
_AHEAD = 2

T = TypeVar("T")
U = TypeVar("U")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class CutCaptions:
    """How many captions a text encoder reads only in part; the first, and what it loses."""

    num: int
    example: str
    lost: str


@dataclass(frozen=True, kw_only=True)
class EncodeReport:
    """What became of a folder; `str()` says it in a few lines.

    `num_samples` pictures are in the store, `num_rejected` in its quarantine list. Of the distinct
    pictures and captions that the samples need, `num_latents_encoded` and `num_captions_encoded`
    were made by this run, the rest was there. `cut_captions` tells by encoder which of these
    captions are too long for it. `num_by_bucket` counts samples, where there are buckets.
    `num_unlisted` samples, which came from `former_source`, were in the store before and are not
    among those of this folder.
    """

    store: Path
    num_samples: int
    num_rejected: int
    rejected_by_stage: Mapping[str, int]
    num_latents_encoded: int
    num_captions_encoded: int
    num_by_bucket: Mapping[Bucket, int] = field(default_factory=dict[Bucket, int])
    cut_captions: Mapping[str, CutCaptions] = field(default_factory=dict[str, CutCaptions])
    num_unlisted: int = 0
    former_source: str | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.store}: {self.num_samples} samples "
            f"({self.num_latents_encoded} pictures and {self.num_captions_encoded} captions "
            "encoded, the rest was there)"
        ]
        if self.num_by_bucket:
            lines.append(", ".join(f"{size} px: {n}" for size, n in self.num_by_bucket.items()))
        if self.num_rejected:
            stages = ", ".join(
                f"{stage} {n}" for stage, n in sorted(self.rejected_by_stage.items())
            )
            lines.append(
                f"{self.num_rejected} files rejected ({stages}); "
                f"reasons in {self.store / QUARANTINE_FILE}"
            )
        for encoder, cut in self.cut_captions.items():
            lines.append(
                f"{cut.num} of the captions encoded are too long for {encoder}, which does not see "
                f'"{_shorten(cut.lost)}" of "{_shorten(cut.example)}"'
            )
        if self.num_unlisted:
            lines.append(
                f"{self.num_unlisted} samples of {self.former_source} were in the store and no "
                "longer are: it lists the pictures of one folder, the last; to have all, put them "
                "into one"
            )
        return "\n".join(lines)


def encode_folder(
    folder: Path | str | FolderListing,
    out: Path | str,
    autoencoder: Autoencoder,
    conditioner: PromptEncoder,
    *,
    resolution_px: int,
    buckets: Sequence[Bucket] = (),
    image_encoder: PictureEncoder | None = None,
    parts: PartsSource | None = None,
    min_side_px: int | None = None,
    max_rejected: int | None = None,
    batch_size: int | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> EncodeReport:
    """Encode what `out` lacks of the folder's pictures and captions, and index the folder.

    The store's index lists exactly the pictures that the folder has now. A killed run is continued
    by the next one.

    Args:
        folder: pictures and captions, see `data.folder`; or what `list_folder` found in it.
        out: the store, new or to be completed.
        autoencoder: makes the latents; runs where its weights are.
        conditioner: makes the text encoders' states.
        resolution_px: side of the square that a picture is cropped and scaled to.
        buckets: the sizes that pictures are cropped and scaled to instead, each to the one nearest
            to its shape (`data.buckets.buckets_for`).
        image_encoder: makes features of each picture's patches, for training that aligns with
            them; by default the store has none.
        parts: where autoencoder and text encoders are from, for the store to note; None for those
            that ship.
        min_side_px: the least side of a usable picture; by default a picture must be as large as
            what it is scaled to.
        max_rejected: more rejected pictures than this end the run; by default any number is fine
            as long as one picture is left.
        batch_size: pictures that the autoencoder sees at once; by default `BATCH_SIZE`, and fewer
            where they are large.
        max_shard_bytes: a shard is closed when it has this size; a killed run loses at most one.
        num_workers: threads that read and decode pictures while others are encoded; the store is
            the same. By default 1 where the CPU encodes, else one for each processor, at most
            `USUAL_WORKERS`.
        progress: called with (done, total) of pictures and distinct captions.

    Raises:
        UserError: the folder cannot be used, or holds no usable picture, or too many others; the
            store cannot be written; a setting is out of range; an encoder gives NaN or infinity.
        StoreError: the store was made by other encoders, at another resolution, with other
            buckets, or with or without features unlike this run, or is damaged.
    """
    buckets = tuple(buckets)
    curation = Curation(resolution_px=resolution_px, min_side_px=min_side_px, buckets=buckets)
    if batch_size is None:
        batch_size = max(1, min(BATCH_SIZE, PIXELS_AT_ONCE // max(1, resolution_px) ** 2))
    if num_workers is None:
        is_on_cpu = next(autoencoder.parameters()).device.type == "cpu"
        num_workers = 1 if is_on_cpu else min(os.cpu_count() or 1, USUAL_WORKERS)
    _check_settings(autoencoder, curation, batch_size, max_shard_bytes, num_workers)
    if buckets and image_encoder is not None:
        raise UserError(
            f"features are made of squares, and {len(buckets)} buckets were asked for; leave out "
            "either the features or the buckets"
        )
    factor = autoencoder.config.downsample_factor
    listing = folder
    if not isinstance(listing, FolderListing):
        listing = list_folder(listing)
    with open_store_writer(
        Path(out),
        resolution_px=resolution_px,
        autoencoder=autoencoder.fingerprint(),
        text=conditioner.fingerprints(),
        max_shard_bytes=max_shard_bytes,
        buckets={(size.height_px // factor, size.width_px // factor): size for size in buckets},
        features=None if image_encoder is None else image_encoder.fingerprint(),
        parts=parts,
    ) as writer:
        num_before = len(writer.latents.rows), len(writer.text.rows)
        former_source, former = _former_samples(writer.path)
        run = _Encoding(listing, curation, writer, max_rejected=max_rejected, progress=progress)
        pictures = run.new_pictures(num_workers)
        for batch in _batched_alike(pictures, batch_size, lambda each: each.pixels.shape):
            for sample in encode_pictures(
                autoencoder, batch, batch_size=batch_size, image_encoder=image_encoder
            ):
                writer.latents.append(sample.content_hash, latent_row(sample))
        writer.latents.flush()
        for texts in _batched(run.new_captions(), _TEXT_CHUNK):
            for text, row in zip(texts, encode_captions(conditioner, texts)):
                writer.text.append(caption_hash(text), row)
                run.note_cuts(text, conditioner.truncations(text))
        writer.text.flush()
        run.finish()
        return EncodeReport(
            store=writer.path,
            num_samples=len(run.kept),
            num_rejected=len(run.rejections),
            rejected_by_stage=Counter(rejection.stage for rejection in run.rejections),
            num_latents_encoded=len(writer.latents.rows) - num_before[0],
            num_captions_encoded=len(writer.text.rows) - num_before[1],
            num_by_bucket=run.count_by_bucket(curation),
            cut_captions=run.cut_captions,
            num_unlisted=run.count_unlisted(former),
            former_source=former_source,
        )


class _Encoding:
    """One run over a folder: what is kept, what is rejected, what is still to be encoded."""

    def __init__(
        self,
        listing: FolderListing,
        curation: Curation,
        writer: StoreWriter,
        *,
        max_rejected: int | None,
        progress: Progress | None,
    ) -> None:
        self.listing, self._curation, self._writer = listing, curation, writer
        self.rejections: list[Rejection] = []
        self.kept: dict[str, RawSample] = {}
        self.cut_captions: dict[str, CutCaptions] = {}
        self._hashes: dict[str, str] = {}
        self._num_rows_before = len(writer.latents.rows)
        self._max_rejected, self._progress = max_rejected, progress
        captions = {text for entry in listing.entries for text in entry.captions.values()}
        self._num_captions, self._num_done = len(captions) + 1, 0
        self._total = len(listing) + self._num_captions
        for rejection in listing.rejections:
            self._reject(rejection)

    def new_pictures(self, num_workers: int) -> Iterator[CuratedSample]:
        """Inspect every picture; yield those whose latents are missing, each content once."""
        accepted: set[str] = set()

        def look(entry: CaptionEntry) -> _Looked:
            checked = self._inspect(entry)
            if isinstance(checked, Rejection):
                return _Looked(checked=checked)
            key = content_hash(checked.image_bytes)
            # What is accepted between here and its turn was decoded for nothing.
            curated = None if key in accepted else self._curate(checked, key)
            return _Looked(checked=checked, key=key, curated=curated)

        looks = _map_ahead(look, self.listing.entries, num_workers)
        for entry, looked in zip(self.listing.entries, looks):
            checked, key, curated = looked.checked, looked.key, looked.curated
            if isinstance(checked, Rejection):
                self._reject(checked)
                continue
            if key not in accepted:
                if isinstance(curated, Rejection):
                    self._reject(curated)
                    continue
                accepted.add(key)
                if isinstance(curated, CuratedSample):
                    yield curated
            # The bytes are not needed again, and all of them might not fit into memory.
            self.kept[entry.file] = replace(checked, image_bytes=b"")
            self._hashes[entry.file] = key
            self._advance()
        if not self.kept:
            raise UserError(f"no picture of {self.listing.folder} can be used: {self._examples()}")

    def new_captions(self) -> Iterator[str]:
        """The empty prompt and the kept pictures' distinct captions, where not encoded yet."""
        captions = (t for sample in self.kept.values() for t in sample.captions.values())
        texts = dict.fromkeys(["", *captions])
        # Captions of rejected pictures were counted, but are never encoded.
        self._advance(self._num_captions - len(texts))
        for text in texts:
            if caption_hash(text) not in self._writer.text:
                yield text
            self._advance()

    def note_cuts(self, text: str, truncations: Sequence[tuple[str, str]]) -> None:
        """Count a new caption for each encoder that reads it only in part."""
        for encoder, lost in truncations:
            first = CutCaptions(num=0, example=text, lost=lost)
            cut = self.cut_captions.get(encoder, first)
            self.cut_captions[encoder] = replace(cut, num=cut.num + 1)

    def finish(self) -> None:
        """Write index and header."""
        variants = sorted({variant for sample in self.kept.values() for variant in sample.captions})
        self._writer.finish(
            [self._index_row(sample) for sample in self.kept.values()],
            self.rejections,
            variants=tuple(variants),
            empty_prompt_row=self._writer.text.rows[caption_hash("")],
            source=str(self.listing.folder),
            world=self.listing.world,
        )

    def count_by_bucket(self, curation: Curation) -> dict[Bucket, int]:
        """The kept pictures of each bucket, in the buckets' order."""
        counts = dict.fromkeys(curation.buckets, 0)
        if counts:
            for file in self.kept:
                row = self._writer.latents.rows[self._hashes[file]]
                height_px, width_px = self._writer.latents.facts["size_px"][row]
                counts[nearest_bucket(curation.buckets, height_px, width_px)] += 1
        return counts

    def count_unlisted(self, former: Sequence[str]) -> int:
        """How many of the samples that were listed, by content, are not among those kept."""
        listed = set(self._hashes.values())
        return sum(content not in listed for content in former)

    def _inspect(self, entry: CaptionEntry) -> RawSample | Rejection:
        sample = load_sample(self.listing.folder, entry)
        return sample if isinstance(sample, Rejection) else self._curation.inspect(sample)

    def _curate(self, sample: RawSample, key: str) -> CuratedSample | RawSample | Rejection:
        """Decode a picture; of one that was, decide alike by what its row says."""
        latents = self._writer.latents
        row = latents.rows.get(key)
        # Rows of this run come into being while other threads look.
        if row is None or row >= self._num_rows_before:
            return self._curation.decode(sample)
        height_px, width_px = latents.facts["size_px"][row]
        return self._curation.recheck(sample, (height_px, width_px))

    def _reject(self, rejection: Rejection) -> None:
        self.rejections.append(rejection)
        self._advance()
        if self._max_rejected is not None and len(self.rejections) > self._max_rejected:
            raise UserError(
                f"more than {self._max_rejected} pictures of {self.listing.folder} were rejected: "
                f"{self._examples()}; mend the folder or allow more"
            )

    def _examples(self) -> str:
        shown = [f"{each.file}: {each.reason}" for each in self.rejections[:2]]
        return "; ".join(shown) + ("; …" if len(self.rejections) > 2 else "")

    def _advance(self, count: int = 1) -> None:
        self._num_done += count
        if self._progress is not None and count:
            self._progress(self._num_done, self._total)

    def _index_row(self, sample: RawSample) -> dict[str, Any]:
        latents, text = self._writer.latents, self._writer.text
        key = self._hashes[sample.file]
        row = latents.rows[key]
        height_px, width_px = latents.facts["size_px"][row]
        top, left, height, width = latents.facts["crop_px"][row]
        return {
            "file": sample.file,
            "content_hash": key,
            "latent_row": row,
            "height_px": height_px,
            "width_px": width_px,
            "crop_top_px": top,
            "crop_left_px": left,
            "crop_height_px": height,
            "crop_width_px": width,
            "origin": sample.origin,
            "license": sample.license,
            **{f"caption.{variant}": caption for variant, caption in sample.captions.items()},
            **{
                f"text_row.{variant}": text.rows[caption_hash(caption)]
                for variant, caption in sample.captions.items()
            },
        }


@dataclass(frozen=True, kw_only=True)
class _Looked:
    """A picture that was read: rejected, or with its hash and, if it may be new, its pixels."""

    checked: RawSample | Rejection
    key: str = ""
    curated: CuratedSample | RawSample | Rejection | None = None


def _check_settings(
    autoencoder: Autoencoder,
    curation: Curation,
    batch_size: int,
    max_shard_bytes: int,
    num_workers: int,
) -> None:
    factor = autoencoder.config.downsample_factor
    if curation.resolution_px % factor:
        raise UserError(
            f"resolution_px is {curation.resolution_px}; the autoencoder needs a multiple of "
            f"{factor}"
        )
    for bucket in curation.buckets:
        if bucket.height_px % factor or bucket.width_px % factor:
            raise UserError(
                f"the bucket {bucket} px has sides that are no multiples of {factor}, which the "
                "autoencoder needs"
            )
        if curation.buckets.count(bucket) > 1:
            raise UserError(f"the bucket {bucket} px is given twice; give each size once")
    for name, value in (("batch_size", batch_size), ("max_shard_bytes", max_shard_bytes)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    if num_workers not in range(1, MOST_WORKERS + 1):
        raise UserError(f"num_workers is {num_workers}; it must be from 1 to {MOST_WORKERS}")


def _former_samples(store: Path) -> tuple[str | None, list[str]]:
    """What a finished store lists so far: the folder it came from, each sample's content hash."""
    try:
        header = read_header(store)
        return header.source, read_index(store, header)["content_hash"].to_pylist()
    except StoreError:  # there is none, or its last run was killed
        return None, []


def _shorten(text: str) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}…"


def _map_ahead(function: Callable[[T], U], items: Iterable[T], num_threads: int) -> Iterator[U]:
    """`function` of each item in their order; with several threads some are made ahead."""
    if num_threads == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
    waiting: deque[Future[U]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > _AHEAD * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _batched_alike(
    items: Iterable[T], size: int, kind_of: Callable[[T], Hashable]
) -> Iterator[list[T]]:
    """Batches of one kind each; those that stay short come last."""
    waiting: dict[Hashable, list[T]] = {}
    for item in items:
        kind = kind_of(item)
        waiting.setdefault(kind, []).append(item)
        if len(waiting[kind]) == size:
            yield waiting.pop(kind)
    yield from waiting.values()
