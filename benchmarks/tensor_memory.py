"""How much memory an import takes, in the client and in the server's processes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rows import Row
from tensor_files import layers, weights, write_bf16
from tensor_site import Site, anonymous_mib, children

CLIENT_MIB, BACKEND_MIB = 200, 96
SAMPLE_SECONDS = 0.05


def memory(site: Site, size_bytes: int) -> Iterator[Row]:
    """The peaks of one import a codec; the higher ones count."""
    path = site.directory / "large.safetensors"
    size_bytes = write_bf16(path, layers(size_bytes), weights)
    clients, backends = [], []
    for codec in (None, "raw"):
        name = f"memory_{codec or 'auto'}"
        url = site.create_database(name)
        with (
            sampled(site.postmaster) as peak,
            site.probing("import_within", url=url, path=path, codec=codec) as process,
        ):
            said, _ = process.communicate()
        clients.append(json.loads(said)["peak_mib"])
        backends.append(max(peak))
        site.drop_database(name)
    path.unlink()
    size = f"{size_bytes / 2**20:.0f} MiB"
    yield _row(f"client's peak RSS above start, import of {size}", clients, CLIENT_MIB)
    yield _row("any backend's peak anonymous RSS in the same", backends, BACKEND_MIB)


@contextmanager
def sampled(postmaster: int) -> Iterator[list[float]]:
    """Note the largest anonymous resident memory of the server's processes, in MiB, by samples."""
    ended, samples = threading.Event(), [0.0]

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            samples.append(max(map(anonymous_mib, children(postmaster)), default=0.0))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def _row(what: str, peaks: list[float], bar: int) -> Row:
    return Row(
        what=what,
        figure=f"{max(peaks):.0f} MiB  (auto {peaks[0]:.0f}, raw {peaks[1]:.0f})",
        bar=f"<= {bar}",
        is_met=max(peaks) <= bar,
    )
