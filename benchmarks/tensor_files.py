"""The weight files that the benchmark of the tensor store imports, written in bounded memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 262144
PIECE_BYTES = 4 * 2**20

Words = NDArray[np.uint16]
MakePiece = Callable[[np.random.Generator, int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One chunk of a file: where it starts in the file, and its length."""

    offset: int
    length: int


def noise(generator: np.random.Generator, size_bytes: int) -> bytes:
    """Random bytes, which nothing shrinks."""
    return generator.bytes(size_bytes)


def weights(generator: np.random.Generator, size_bytes: int) -> bytes:
    """bfloat16 numbers from a normal distribution of deviation 0.02, as trained weights have."""
    return bf16(generator.normal(0, 0.02, size_bytes // 2).astype(np.float32)).tobytes()


def bf16(values: NDArray[np.float32]) -> Words:
    """The words of float32 values rounded to bfloat16, ties to even; NaN does not occur."""
    words = np.ascontiguousarray(values).view(np.uint32)
    rounded = words + np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def fp32(words: Words) -> NDArray[np.float32]:
    """bfloat16 words as float32 values, exactly."""
    return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)


def layers(total_bytes: int) -> list[tuple[int, ...]]:
    """Shapes of 2-byte numbers as a transformer has them, of `total_bytes` (even) in all.

    A quarter is the embedding; the rest are square and wide matrices and vectors, most of whose
    lengths are no multiple of a chunk, and a vector of what is left over.
    """
    width = max(8, 8 * (math.isqrt(total_bytes) // 128))
    embedding = (max(1, total_bytes // 8 // width), width)
    layer = [(width, width)] * 4 + [(width * 11 // 4, width)] * 3 + [(width,)] * 2
    count = max(1, (total_bytes * 3 // 4) // (2 * sum(map(math.prod, layer))))
    shapes = [embedding, *(shape for _ in range(count) for shape in layer)]
    rest = total_bytes // 2 - sum(map(math.prod, shapes))
    return [*shapes, (rest,)] if rest else shapes


def write_bf16(
    path: Path, shapes: Sequence[tuple[int, ...]], make: MakePiece, seed: int = 1
) -> int:
    """Write a safetensors file of bfloat16 tensors; how many bytes of tensors it has."""
    sizes = [2 * math.prod(shape) for shape in shapes]
    generator = np.random.default_rng(seed)
    tensors = [(f"tensor.{n:05d}", "BF16", shape) for n, shape in enumerate(shapes)]

    def bodies() -> Iterator[bytes]:
        for size in sizes:
            for start in range(0, size, PIECE_BYTES):
                yield make(generator, min(PIECE_BYTES, size - start))

    write(path, tensors, sizes, bodies())
    return sum(sizes)


def write(
    path: Path,
    tensors: Sequence[tuple[str, str, tuple[int, ...]]],
    sizes: Sequence[int],
    bodies: Iterator[bytes],
) -> None:
    """Write a safetensors file of (name, dtype, shape) and of the tensors' bytes in order."""
    header: dict[str, Any] = {}
    end = 0
    for (name, dtype, shape), size in zip(tensors, sizes, strict=True):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(bodies)


def read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors' bytes start, and what the header says of each by name."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return 8 + length, header


def read_tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """The dtype and bytes of each tensor by name."""
    start, header = read_header(path)
    data = memoryview(path.read_bytes())[start:]
    return {
        name: (entry["dtype"], bytes(data[slice(*entry["data_offsets"])]))
        for name, entry in header.items()
    }


def spans(path: Path) -> list[Span]:
    """The chunks that the store makes of the file, in the order of the file."""
    start, header = read_header(path)
    found = []
    for begin, end in sorted(entry["data_offsets"] for entry in header.values()):
        found += [
            Span(offset=start + offset, length=min(CHUNK_BYTES, end - offset))
            for offset in range(begin, end, CHUNK_BYTES)
        ]
    return found


def cast_to_bf16(source: Path, target: Path) -> None:
    """Write the float32 tensors of `source` as bfloat16; others are left out."""
    floats = {n: raw for n, (dtype, raw) in read_tensors(source).items() if dtype == "F32"}
    words = {name: bf16(np.frombuffer(raw, np.float32)) for name, raw in floats.items()}
    write(
        target,
        [(name, "BF16", (each.size,)) for name, each in words.items()],
        [each.nbytes for each in words.values()],
        (each.tobytes() for each in words.values()),
    )
