"""Which pictures are good enough to train on: pure stages from raw file to cropped pixels.

A `CurationStage` turns a sample into a better one, or into a `Rejection` with its reason. On the
walk of a sample: folder → here → encode. Stages hold no state, so a sample may be retried, alone or
on another machine, with the same result.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from rectiflow.base.errors import UserError
from rectiflow.base.files import atomic_write
from rectiflow.data.buckets import Bucket, nearest_bucket
from rectiflow.data.caption_files import is_unicode
from rectiflow.data.image_header import read_image_header
from rectiflow.data.pixels import UndecodableError, centered_crop, crop_and_resize, decode_picture
from rectiflow.data.records import CuratedSample, RawSample, Rejection

SampleIn = TypeVar("SampleIn", contravariant=True)
SampleOut = TypeVar("SampleOut", covariant=True)


class CurationStage(Protocol[SampleIn, SampleOut]):
    """One decision on one sample. Law: pure; every sample is kept or rejected, never both."""

    @property
    def name(self) -> str: ...

    def apply(self, sample: SampleIn) -> SampleOut | Rejection:
        """The sample, possibly changed, or why it cannot be used."""
        ...


@dataclass(frozen=True, kw_only=True)
class RequireCaption:
    """Drops blank caption variants; rejects a picture that has no other, or text of no Unicode."""

    name: str = "caption"

    def apply(self, sample: RawSample) -> RawSample | Rejection:
        captions = {variant: text for variant, text in sample.captions.items() if text.strip()}
        if not captions:
            return Rejection(file=sample.file, stage=self.name, reason="it has no caption")
        for variant, text in captions.items():
            if not is_unicode(text):
                reason = f"its caption {variant!r} is not valid Unicode text"
                return Rejection(file=sample.file, stage=self.name, reason=reason)
        return replace(sample, captions=captions)


@dataclass(frozen=True, kw_only=True)
class LimitSize:
    """Rejects pictures that are too small or too large, by their header, before decoding.

    The score is the shorter side, or the number of pixels.
    """

    min_side_px: int
    max_pixels: int
    name: str = "size"

    def apply(self, sample: RawSample) -> RawSample | Rejection:
        header = read_image_header(sample.image_bytes)
        if header is None:
            reason = "it is not a PNG, JPEG or WebP file, or its header is damaged"
            return Rejection(file=sample.file, stage=self.name, reason=reason)
        height, width = header.height_px, header.width_px
        size = f"{width}×{height} px"
        if min(height, width) < self.min_side_px:
            return Rejection(
                file=sample.file,
                stage=self.name,
                reason=f"{size} is too small; both sides need at least {self.min_side_px} px",
                score=float(min(height, width)),
            )
        if height * width > self.max_pixels:
            return Rejection(
                file=sample.file,
                stage=self.name,
                reason=f"{size} is too large; at most {self.max_pixels:,} pixels are decoded",
                score=float(height * width),
            )
        return sample


@dataclass(frozen=True, kw_only=True)
class Decode:
    """Decodes a picture by the rules of `data.pixels`; rejects what no decoder can read whole."""

    name: str = "decode"

    def apply(self, sample: RawSample) -> CuratedSample | Rejection:
        header = read_image_header(sample.image_bytes)
        if header is None:
            reason = "it is not a PNG, JPEG or WebP file, or its header is damaged"
            return Rejection(file=sample.file, stage=self.name, reason=reason)
        try:
            pixels = decode_picture(sample.image_bytes, size_px=(header.height_px, header.width_px))
        except UndecodableError as error:
            return Rejection(file=sample.file, stage=self.name, reason=str(error))
        height, width = pixels.shape[:2]
        return CuratedSample(
            file=sample.file,
            pixels=pixels,
            size_px=(height, width),
            crop_px=(0, 0, height, width),
            captions=sample.captions,
            content_hash=content_hash(sample.image_bytes),
            origin=sample.origin,
            license=sample.license,
        )


@dataclass(frozen=True, kw_only=True)
class CropToBucket:
    """Cuts the middle out and scales it to the bucket of the nearest ratio (Lanczos).

    A picture that would have to be enlarged is rejected unless `may_enlarge`.
    """

    buckets: tuple[Bucket, ...]
    may_enlarge: bool = True
    name: str = "crop"

    def apply(self, sample: CuratedSample) -> CuratedSample | Rejection:
        refused = self.refuse(sample.file, sample.size_px)
        if refused is not None:
            return refused
        size_px, crop_px = self._plan(sample.size_px)
        pixels = crop_and_resize(sample.pixels, crop_px, size_px)
        return replace(sample, pixels=pixels, crop_px=crop_px)

    def refuse(self, file: str, size_px: tuple[int, int]) -> Rejection | None:
        """The decision alone, which the (height, width) of the upright picture is enough for."""
        (rows, columns), (_, _, height, width) = self._plan(size_px)
        if self.may_enlarge or (height >= rows and width >= columns):
            return None
        bucket = Bucket(height_px=rows, width_px=columns)
        reason = f"{size_px[1]}×{size_px[0]} px is too small; its bucket has {bucket} px"
        return Rejection(file=file, stage=self.name, reason=reason, score=float(min(size_px)))

    def _plan(self, size_px: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
        """The bucket's (height, width), and what of the picture is cut out for it."""
        bucket = nearest_bucket(self.buckets, *size_px)
        shape = bucket.height_px, bucket.width_px
        return shape, centered_crop(*size_px, shape=shape)


@dataclass(frozen=True, kw_only=True)
class Curation:
    """The stages in order and their limits.

    Pictures become squares of `resolution_px`, or what is nearest to them among `buckets`. Without
    `min_side_px` a picture must be large enough that nothing is enlarged. `max_pixels` bounds what
    a decoder may allocate.

    Raises:
        UserError: a limit that no picture, or no resolution, can meet.
    """

    resolution_px: int
    min_side_px: int | None = None
    max_pixels: int = 2**26
    buckets: tuple[Bucket, ...] = ()

    def __post_init__(self) -> None:
        if self.resolution_px >= 8 and self.smallest_side_px**2 > self.max_pixels:
            raise UserError(
                f"resolution_px {self.resolution_px} asks for sides of at least "
                f"{self.smallest_side_px} px, and pictures of more than {self.max_pixels} pixels "
                f"are not decoded (max_pixels); give at most {math.isqrt(max(self.max_pixels, 0))}"
            )
        least = {"resolution_px": 8, "min_side_px": 1}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise UserError(f"{name} is {value}; it must be at least {minimum}")

    @property
    def smallest_side_px(self) -> int:
        """The least side that any picture may have."""
        if self.min_side_px is not None:
            return self.min_side_px
        return min(min(bucket.height_px, bucket.width_px) for bucket in self.sizes)

    @property
    def sizes(self) -> tuple[Bucket, ...]:
        """The buckets; without any, the square alone."""
        square = Bucket(height_px=self.resolution_px, width_px=self.resolution_px)
        return self.buckets or (square,)

    def inspect(self, sample: RawSample) -> RawSample | Rejection:
        """The stages that cost nothing: captions and header."""
        checked = RequireCaption().apply(sample)
        if isinstance(checked, Rejection):
            return checked
        limits = LimitSize(min_side_px=self.smallest_side_px, max_pixels=self.max_pixels)
        return limits.apply(checked)

    def decode(self, sample: RawSample) -> CuratedSample | Rejection:
        """The stages that need pixels, for a sample that `inspect` kept."""
        decoded = Decode().apply(sample)
        if isinstance(decoded, Rejection):
            return decoded
        return self._crop.apply(decoded)

    def recheck(self, sample: RawSample, size_px: tuple[int, int]) -> RawSample | Rejection:
        """What `decode` would decide on an upright (height, width) that an earlier run decoded.

        So that a picture is kept or rejected alike in whichever run its latents were made.
        """
        return self._crop.refuse(sample.file, size_px) or sample

    @property
    def _crop(self) -> CropToBucket:
        return CropToBucket(buckets=self.sizes, may_enlarge=self.min_side_px is not None)

    def apply(self, sample: RawSample) -> CuratedSample | Rejection:
        """All stages."""
        inspected = self.inspect(sample)
        return inspected if isinstance(inspected, Rejection) else self.decode(inspected)


def content_hash(data: bytes) -> str:
    """What identifies a picture: the SHA-256 of its file's bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def write_quarantine(path: Path | str, rejections: Iterable[Rejection]) -> None:
    """Write the rejections as JSON lines {"file", "stage", "reason", "score"}, by file name.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_write(path) as file:
        for rejection in sorted(rejections, key=lambda each: each.file):
            line = json.dumps(asdict(rejection), ensure_ascii=False) + "\n"
            # A file name may hold bytes that are no text; this is JSON's own way to escape them.
            file.write(line.encode("utf-8", "backslashreplace"))
