"""The weight format `torch`: what `torch.save` wrote of a state dict, read without running it."""

from __future__ import annotations

import os
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from arc_halo.errors import FormatError, PluginError
from arc_halo.formats._files import open_regular
from arc_halo.formats._header import MAX_HEADER_BYTES, check_text, refuse
from arc_halo.formats._index import check_weight_map, find_model, read_weight_map
from arc_halo.formats._torch_tensors import describe_tensor, raw_view
from arc_halo.formats.sharding import INDEX_SUFFIX
from arc_halo.hookspecs import hookimpl
from arc_halo.types import TensorInfo, WeightFormat

if TYPE_CHECKING:
    import torch  # pyright: ignore[reportMissingImports]
    from numpy.typing import NDArray

SUFFIXES = (".bin", ".pt", ".pth")
WRAPPERS = ("state_dict", "model")
"""Keys under which training programs keep the state dict beside what else they save."""


@hookimpl
def arc_halo_weight_formats() -> Iterator[WeightFormat]:
    yield WeightFormat(
        name="torch",
        version=1,
        summary="state dicts of torch.save, reading only, needs torch",
        suffixes=(*SUFFIXES, *(suffix + INDEX_SUFFIX for suffix in SUFFIXES)),
        open=open_torch,
    )


class TorchReader:
    """An open state dict, or its shards in name order; tensors come in the order of the dict.

    Bytes are read from the mapped file when they are asked for, in several threads if need be.
    A tensor that does not lie in one piece is copied first, one a thread at a time.
    """

    def __init__(self, files: Sequence[TorchFile], read: Sequence[Path]) -> None:
        self._places = {info.name: (file, info) for file in files for info in file.infos}
        self._files = tuple(read)
        self._local = threading.local()

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        return [info for _, info in self._places.values()]

    @property
    def metadata(self) -> Mapping[str, str]:
        """What transformers expects of a file that torch can load."""
        return {"format": "pt"}

    @property
    def files(self) -> Sequence[Path]:
        return self._files

    def read_into(self, name: str, offset: int, out: memoryview) -> None:
        """Fill `out` with the tensor's bytes from `offset` on; both must lie within the tensor.

        Raises `FormatError` (AH063) when the file has meanwhile changed its size.
        """
        import numpy as np

        file, info = self._places[name]
        if offset < 0 or offset + out.nbytes > info.size_bytes:
            raise ValueError(f"{name!r} has no {out.nbytes} bytes at {offset}")
        if out.nbytes:
            file.check_size()
            raw = self._raw(file, name)[offset : offset + out.nbytes]
            np.copyto(np.frombuffer(out.cast("B"), dtype=np.uint8), raw)

    def _raw(self, file: TorchFile, name: str) -> NDArray[Any]:
        # The last one only: what was copied must not add up to a model.
        if getattr(self._local, "name", None) != name:
            self._local.name, self._local.raw = None, None
            self._local.raw = raw_view(file.tensors[name])
            self._local.name = name
        raw: NDArray[Any] = self._local.raw
        return raw


@contextmanager
def open_torch(path: Path) -> Iterator[TorchReader]:
    """Open a file of `torch.save`, an index of several, or the directory that holds either.

    The file is a state dict, or a dict with one under `state_dict` or `model`; what else stands
    beside it is left out. Nothing but tensors is ever made of it. Raises `FormatError` for
    anything else, and `PluginError` without torch.
    """
    with ExitStack() as stack:
        file = (
            find_model(path, usual="pytorch_model.bin", suffixes=SUFFIXES)
            if path.is_dir()
            else path
        )
        if file.name.endswith(INDEX_SUFFIX):
            yield _open_sharded(file, stack)
        else:
            yield TorchReader([_open_file(file, stack)], [file])


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchFile:
    """One open file and its tensors, still on the disk."""

    path: Path
    descriptor: int
    size_bytes: int
    tensors: Mapping[str, torch.Tensor]
    infos: Sequence[TensorInfo]

    def check_size(self) -> None:
        """Touching what was cut off a mapped file would end the program."""
        if os.fstat(self.descriptor).st_size != self.size_bytes:
            raise FormatError(
                f"{self.path}: it changed while it was read", hint="run it again", code="AH063"
            )


def _open_sharded(index: Path, stack: ExitStack) -> TorchReader:
    weight_map = read_weight_map(index)
    names = sorted(set(weight_map.values()))
    files = [_open_file(index.parent / name, stack, of=index) for name in names]
    check_weight_map(weight_map, ((file.path, file.tensors) for file in files), index)
    return TorchReader(files, [index, *(file.path for file in files)])


def _open_file(path: Path, stack: ExitStack, *, of: Path | None = None) -> TorchFile:
    descriptor, size_bytes = open_regular(path, stack, of=of)
    _check_archive(path, descriptor)
    found = _state_dict(_load(path), path)
    infos = [describe_tensor(name, tensor, str(path)) for name, tensor in found.items()]
    return TorchFile(
        path=path, descriptor=descriptor, size_bytes=size_bytes, tensors=found, infos=infos
    )


def _check_archive(path: Path, descriptor: int) -> None:
    """Refuse what torch would unpack in memory, and what it can only read as a whole."""
    try:
        with (
            os.fdopen(os.dup(descriptor), "rb") as file,
            zipfile.ZipFile(file) as archive,
        ):
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as exc:
        raise FormatError(
            f"{path}: it is not a zip archive of torch.save",
            hint="load it with torch.load(…, weights_only=True) and torch.save it again, "
            "or save it as safetensors; before torch 1.6 files were another format",
        ) from exc
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            refuse(str(path), f"its member {member.filename!r} is compressed or encrypted")
        if member.filename.endswith(".pkl") and member.file_size > MAX_HEADER_BYTES:
            refuse(str(path), f"its {member.filename!r} has more than {MAX_HEADER_BYTES:,} bytes")


def _load(path: Path) -> object:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as exc:
        raise PluginError(
            f"{path}: reading a file of torch.save needs torch",
            hint="pip install 'arc-halo[torch]', or save the model as safetensors",
        ) from exc
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except UnpicklingError as exc:
        asked = re.search(r"GLOBAL (\S+)", str(exc))
        what = f"it asks for {asked[1]}" if asked else "its pickle is not one of tensors only"
        raise FormatError(
            f"{path}: {what}: nothing was run",
            hint="save the state dict alone: torch.save(model.state_dict(), …)",
        ) from exc
    except Exception as exc:
        first = str(exc).partition("\n")[0][:200]
        raise FormatError(
            f"{path}: torch cannot load it: {first or type(exc).__name__}",
            hint="get or save the file again",
        ) from exc


def _state_dict(loaded: object, path: Path) -> dict[str, torch.Tensor]:
    """The tensors by name, out of the wrapper that some programs put around them."""
    import torch  # pyright: ignore[reportMissingImports]

    for key in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping):
        refuse(str(path), f"it holds a {type(loaded).__name__}, not a state dict")
    for name, value in loaded.items():
        if not isinstance(name, str):
            refuse(str(path), f"the key {name!r} of its state dict is not a string")
        check_text(name, str(path), name)
        if not isinstance(value, torch.Tensor):
            what = f"it is a {type(value).__name__}, not a tensor"
            refuse(str(path), what, tensor=name)
    return dict(loaded)
