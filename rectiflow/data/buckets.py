"""Buckets: the few picture sizes of a multi-aspect store, all of nearly the same number of tokens.

On the walk of a sample: curation crops each picture to the bucket that is nearest to its shape, and
the loader makes every batch of one bucket. Source: arXiv 2403.03206, section 5.3.2 (H·W ≈ S²).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rectiflow.base.errors import UserError

#: How far the area of a bucket may be from the square's, as a share of it. Equal batches should
#: cost about the same, and one timestep shift should suit them all.
MAX_AREA_DIFFERENCE = 0.25
#: Wider than any picture that is decoded, and few enough digits to compute with.
_RATIO = re.compile(r"(\d{1,5}):(\d{1,5})")


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A size that pictures are cropped and scaled to, in pixels."""

    height_px: int
    width_px: int

    def __str__(self) -> str:
        """Width first, as pictures' sizes are read."""
        return f"{self.width_px}×{self.height_px}"

    @property
    def log_ratio(self) -> float:
        """log(width / height)."""
        return math.log(self.width_px / self.height_px)


def buckets_for(
    ratios: Sequence[str], *, resolution_px: int, multiple_px: int
) -> tuple[Bucket, ...]:
    """The buckets of some aspect ratios, from the tallest to the widest.

    The sides of ratio W:H are resolution·sqrt(H/W) and resolution·sqrt(W/H), each rounded to the
    nearest multiple.

    Args:
        ratios: width to height, such as "16:9"; their order does not matter.
        resolution_px: side of the square with the buckets' area.
        multiple_px: what every side is a multiple of: the pixels on a token's side.

    Raises:
        UserError: no ratio, or one that is none; a resolution that is no multiple; sides that
            cannot be rounded without much more or less area; two ratios of one size.
    """
    if not ratios:
        raise UserError("there are no buckets; give ratios such as 1:1,2:1,1:2")
    if resolution_px < multiple_px or resolution_px % multiple_px:
        raise UserError(
            f"resolution_px is {resolution_px}; with buckets it must be a multiple of "
            f"{multiple_px}, the side of a token"
        )
    found: dict[Bucket, str] = {}
    for text in ratios:
        bucket = _bucket(text, resolution_px, multiple_px)
        if bucket in found:
            raise UserError(
                f"the buckets {found[bucket]!r} and {text!r} are both {bucket} px at a resolution "
                f"of {resolution_px} px; leave one out"
            )
        found[bucket] = text
    return tuple(sorted(found, key=lambda bucket: bucket.log_ratio))


def nearest_bucket(buckets: Sequence[Bucket], height_px: int, width_px: int) -> Bucket:
    """The bucket whose log(width / height) is nearest to a picture's; of two, the first."""
    log_ratio = math.log(width_px / height_px)
    return min(buckets, key=lambda bucket: abs(bucket.log_ratio - log_ratio))


def parse_ratio(text: str) -> tuple[int, int]:
    """Width and height of a ratio such as "16:9".

    Raises:
        UserError: it is none.
    """
    found = _RATIO.fullmatch(text.strip())
    width, height = (int(side) for side in found.groups()) if found else (0, 0)
    if not (width and height):
        raise UserError(
            f"{text!r:.40} is no aspect ratio; give width:height in whole numbers of at most five "
            "digits, such as 16:9"
        )
    return width, height


def _bucket(text: str, resolution_px: int, multiple_px: int) -> Bucket:
    width, height = parse_ratio(text)
    across = math.sqrt(width / height)
    tokens = resolution_px / multiple_px
    bucket = Bucket(
        height_px=max(1, round(tokens / across)) * multiple_px,
        width_px=max(1, round(tokens * across)) * multiple_px,
    )
    area = bucket.height_px * bucket.width_px / resolution_px**2
    if abs(area - 1.0) > MAX_AREA_DIFFERENCE:
        raise UserError(
            f"the bucket {text!r} would be {bucket} px, {area:.2f} of the area of "
            f"{resolution_px}×{resolution_px}; at this resolution, with sides in multiples of "
            f"{multiple_px} px, choose a ratio nearer to 1:1"
        )
    return bucket
