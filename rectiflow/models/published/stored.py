"""Tensors that lie in safetensors files, as byte ranges: cut, joined and copied without arithmetic.

What released layouts do differently from ours is cutting along the first dimension, joining and
reshaping; on byte ranges that is exact for every dtype, and nothing is read before it is needed.
Format: https://github.com/huggingface/safetensors, and the formats' page of the docs.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from rectiflow.base.files import atomic_write, explain_os_error

#: The names of number types in a header.
DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F32": torch.float32,
    "I32": torch.int32,
    "U32": torch.uint32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
HEADER_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8
_COPY_BYTES = 2**24


@dataclass(frozen=True)
class FileBytes:
    """The bytes of a file."""

    path: Path

    @cached_property
    def _mapping(self) -> Tensor:
        with self.path.open("rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return torch.frombuffer(buffer, dtype=torch.uint8)

    def mapped(self) -> Tensor:
        """All of it as uint8 [n]; pages come into memory when touched, writes stay there."""
        return self._mapping

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with what stands from `offset` on."""
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(offset)
                done = 0
                while done < len(target):
                    count = file.readinto(target[done:])
                    if not count:
                        raise OSError(f"it ended at byte {offset + done} while it was read")
                    done += count
        except OSError as error:
            raise explain_os_error(error, self.path, "read") from error


@dataclass(frozen=True, eq=False)
class MemoryBytes:
    """The bytes of a tensor in memory."""

    values: Tensor

    def mapped(self) -> Tensor:
        """All of it as uint8 [n], the tensor's own memory."""
        return self.values.reshape(-1).view(torch.uint8)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with what stands from `offset` on."""
        target[:] = self.mapped().numpy().data[offset : offset + len(target)]


@dataclass(frozen=True)
class ByteRange:
    """`count` bytes from `offset` on."""

    source: FileBytes | MemoryBytes
    offset: int
    count: int


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor whose values lie in one byte range after the other, row by row."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    ranges: tuple[ByteRange, ...]

    @staticmethod
    def of(tensor: Tensor) -> StoredTensor:
        """A tensor that is in memory already."""
        values = tensor.detach().cpu().contiguous()
        count = values.numel() * values.element_size()
        shape = tuple(values.shape)
        ranges = (ByteRange(MemoryBytes(values), 0, count),)
        return StoredTensor(dtype=values.dtype, shape=shape, ranges=ranges)

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize

    def chunk(self, num: int) -> list[StoredTensor]:
        """`num` equal parts along the first dimension.

        Raises:
            ValueError: it does not divide.
        """
        if not self.shape or self.shape[0] % num:
            raise ValueError(f"a tensor of shape {self.shape} is not cut into {num} equal parts")
        count = self.num_bytes // num
        return [
            replace(
                self,
                shape=(self.shape[0] // num, *self.shape[1:]),
                ranges=tuple(_cut(self.ranges, i * count, (i + 1) * count)),
            )
            for i in range(num)
        ]

    @staticmethod
    def join(parts: Sequence[StoredTensor]) -> StoredTensor:
        """The parts one after the other along the first dimension.

        Raises:
            ValueError: they differ in dtype or in the other dimensions.
        """
        first = parts[0]
        if any((p.dtype, p.shape[1:]) != (first.dtype, first.shape[1:]) for p in parts):
            found = ", ".join(f"{HEADER_NAMES[p.dtype]} {list(p.shape)}" for p in parts)
            raise ValueError(f"parts of one tensor differ: {found}")
        return StoredTensor(
            dtype=first.dtype,
            shape=(sum(p.shape[0] for p in parts), *first.shape[1:]),
            ranges=tuple(r for p in parts for r in p.ranges),
        )

    def reshape(self, *shape: int) -> StoredTensor:
        """The same values in another shape.

        Raises:
            ValueError: the number of values differs.
        """
        if math.prod(shape) != self.num_elements:
            raise ValueError(f"a tensor of shape {self.shape} does not become {shape}")
        return replace(self, shape=shape)

    def load(self, dtype: torch.dtype | None = None) -> Tensor:
        """The values: mapped where they lie in one range and keep their type, else a copy."""
        is_kept = dtype is None or dtype == self.dtype
        if len(self.ranges) == 1 and is_kept and self.num_elements:
            (whole,) = self.ranges
            # A view of another type needs a start that is a multiple of its size.
            if whole.offset % self.dtype.itemsize == 0:
                values = whole.source.mapped()[whole.offset : whole.offset + whole.count]
                return values.view(self.dtype).reshape(self.shape)
        values = torch.empty(self.shape, dtype=self.dtype)
        target = values.reshape(-1).view(torch.uint8).numpy().data
        start = 0
        for part in self.ranges:
            part.source.read_into(part.offset, target[start : start + part.count])
            start += part.count
        return values if dtype is None else values.to(dtype)

    def blocks(self) -> Iterator[memoryview]:
        """The bytes in pieces of a moderate size; each is valid until the next."""
        buffer = memoryview(bytearray(min(_COPY_BYTES, max(self.num_bytes, 1))))
        for part in self.ranges:
            for start in range(0, part.count, _COPY_BYTES):
                piece = buffer[: min(_COPY_BYTES, part.count - start)]
                part.source.read_into(part.offset + start, piece)
                yield piece


def _cut(ranges: Sequence[ByteRange], start: int, stop: int) -> Iterator[ByteRange]:
    """Bytes `start` to `stop` of the ranges, counted as if they were one."""
    for part in ranges:
        first, last = max(start, 0), min(stop, part.count)
        if first < last:
            yield replace(part, offset=part.offset + first, count=last - first)
        start, stop = start - part.count, stop - part.count


def write_safetensors(
    path: Path | str, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all, one moderate piece in memory at a time.

    The order is that of the safetensors library: widest types first, then by name.

    Raises:
        UserError: the file cannot be written.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.num_bytes
        header[name] = {
            "dtype": HEADER_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            for piece in tensors[name].blocks():
                file.write(piece)
