"""What the merge `linear` is compared with: the barest loop of NumPy that averages two files.

    python benchmarks/fusion_bare.py ONE TWO OUT

reads and writes the same bytes, in parts of the same size, and does nothing else: no dtypes, names,
shapes or weights are looked at, and nothing is checked. Prints CPU seconds.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np

ITEMS = 65536
WINDOW_BYTES = 2**20


def average(one: str, two: str, out: str) -> None:
    """Half of each file's BF16 numbers, rounded once; what is before them is copied."""
    files = [os.open(path, os.O_RDONLY) for path in (one, two)]
    size = os.fstat(files[0]).st_size
    start = 8 + int.from_bytes(os.pread(files[0], 8, 0), "little")
    buffers = [memoryview(bytearray(WINDOW_BYTES)) for _ in files]
    first, second = (np.frombuffer(buffer, ml_dtypes.bfloat16) for buffer in buffers)
    total, other = np.empty(ITEMS, np.float32), np.empty(ITEMS, np.float32)
    result = np.empty(WINDOW_BYTES // 2, ml_dtypes.bfloat16)
    half = np.float32(0.5)
    with Path(out).open("wb", buffering=0) as written:
        written.write(os.pread(files[0], start, 0))
        for offset in range(start, size, WINDOW_BYTES):
            length = min(WINDOW_BYTES, size - offset)
            for file, buffer in zip(files, buffers, strict=True):
                os.preadv(file, [buffer[:length]], offset)
            for begin in range(0, length // 2, ITEMS):
                part = slice(begin, min(begin + ITEMS, length // 2))
                count = part.stop - begin
                total[:count], other[:count] = first[part], second[part]
                total *= half
                other *= half
                total += other
                result[part] = total[:count]
            written.write(result[: length // 2].view(np.uint8).data)
        os.fsync(written.fileno())


def main() -> None:
    started = time.process_time()
    average(*sys.argv[1:])
    print(time.process_time() - started)


if __name__ == "__main__":
    main()
