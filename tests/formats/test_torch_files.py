"""Files of torch.save, against torch itself. They need torch: `pytest -m torch`."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from arc_halo.errors import FormatError
from arc_halo.formats.torch_files import arc_halo_weight_formats, open_torch
from arc_halo.tensors.dtypes import DTYPES
from arc_halo.types import TensorInfo

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.torch

Contents = dict[str, tuple[str, tuple[int, ...], bytes]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


@pytest.fixture
def save(path: Path) -> Callable[[Any], Path]:
    def saved(thing: Any) -> Path:
        import torch

        torch.save(thing, path)
        return path

    return saved


def read_all(path: Path) -> Contents:
    with open_torch(path) as reader:
        return {info.name: (info.dtype, info.shape, read(reader, info)) for info in reader.tensors}


def read(reader: Any, info: TensorInfo) -> bytes:
    out = bytearray(info.size_bytes)
    reader.read_into(info.name, 0, memoryview(out))
    return bytes(out)


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes by the way of a storage of their own, which the reader does not go."""
    import torch

    return bytes(tensor.clone(memory_format=torch.contiguous_format).untyped_storage().tolist())


def refused(path: Path, match: str) -> FormatError:
    with pytest.raises(FormatError, match=match) as caught, open_torch(path):
        pass
    assert str(path.name) in caught.value.message
    assert caught.value.hint
    return caught.value


def test_every_dtype_of_the_safetensors_library_comes_back_bit_by_bit(save: Any) -> None:
    import torch
    from safetensors.torch import _TYPES  # the reference's own table

    tensors = {}
    for name, dtype in _TYPES.items():
        data = torch.randint(0, 2 if name == "BOOL" else 256, (48,), dtype=torch.uint8)
        tensors[name] = data.view(dtype).reshape(2, -1)
    assert len(tensors) >= 18
    assert _TYPES.keys() <= DTYPES.keys()
    found = read_all(save(tensors))
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name] == (name, tuple(tensor.shape), bytes(tensor.untyped_storage().tolist()))


def test_packed_elements_count_as_the_safetensors_library_counts_them(save: Any) -> None:
    import torch

    pairs = torch.arange(6, dtype=torch.uint8).view(torch.float4_e2m1fn_x2).reshape(2, 3)
    assert read_all(save({"f4": pairs})) == {"f4": ("F4", (2, 6), bytes(range(6)))}


def test_shapes_and_views_are_read_as_their_own_bytes(save: Any) -> None:
    import torch

    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "whole": base,
        "turned": base.t(),
        "column": base[:, 2],
        "part": base[1:3],
        "every other": base[::2, ::3],
        "scalar": torch.tensor(1.5, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "conjugate": torch.tensor([1 + 2j, 3 - 4j]).conj(),
        "negative": torch.tensor([1 + 2j]).conj().imag,
        "stride of one": torch.arange(4.0)[1::2][:1],
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    found = read_all(save(tensors))
    for name, tensor in tensors.items():
        plain = tensor.detach().resolve_conj().resolve_neg()
        assert found[name][1:] == (tuple(tensor.shape), raw(plain)), name


def test_tied_tensors_are_read_each_for_itself(save: Any) -> None:
    import torch

    tied = torch.randn(5, 3)
    found = read_all(save(OrderedDict({"embed": tied, "head": tied, "row": tied[1]})))
    assert found["embed"] == found["head"] == ("F32", (5, 3), raw(tied))
    assert found["row"] == ("F32", (3,), raw(tied[1]))


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_wrapper_is_looked_into_and_the_rest_left_out(save: Any, key: str) -> None:
    import torch

    path = save({"epoch": 3, "optimizer": {"lr": 0.1}, key: {"w": torch.ones(2)}})
    assert list(read_all(path)) == ["w"]


def test_a_tensor_called_model_is_no_wrapper(save: Any) -> None:
    import torch

    assert list(read_all(save({"model": torch.ones(2), "state_dict": torch.ones(1)}))) == [
        "model",
        "state_dict",
    ]


def test_any_part_can_be_read_by_several_threads(save: Any) -> None:
    import torch

    tensors = {str(i): torch.randn(40, 50) if i % 2 else torch.randn(50, 40).t() for i in range(20)}
    with open_torch(save(tensors)) as reader, ThreadPoolExecutor(8) as pool:

        def part(name: str) -> bool:
            out = bytearray(1001)
            reader.read_into(name, 333, memoryview(out))
            return bytes(out) == raw(tensors[name])[333:1334]

        assert all(pool.map(part, list(tensors) * 3))
        with pytest.raises(ValueError, match="has no"):
            reader.read_into("0", 7990, memoryview(bytearray(11)))


class Touch:
    """What a pickle can do to whoever loads it carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_refused_and_not_run(save: Any, tmp_path: Path) -> None:
    import torch

    path = save({"w": torch.ones(2), "x": Touch(tmp_path / "touched")})
    error = refused(path, "it asks for posix.mkdir")
    assert "weights_only=False" not in error.message + str(error.hint)
    assert not (tmp_path / "touched").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_bare_pickle_is_refused_and_not_run(path: Path, tmp_path: Path, protocol: int) -> None:
    path.write_bytes(pickle.dumps({"x": Touch(tmp_path / "touched")}, protocol))
    refused(path, "not a zip archive of torch.save")
    assert not (tmp_path / "touched").exists()


def test_a_file_of_before_torch_1_6_is_refused_with_a_way_out(path: Path) -> None:
    import torch

    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    error = refused(path, "not a zip archive")
    assert "torch.save it again" in str(error.hint)


def things() -> dict[str, tuple[Any, str]]:
    import torch

    return {
        "number": ({"w": torch.ones(1), "step": 3}, "tensor 'step': it is a int, not a tensor"),
        "nothing": ({"w": None}, "tensor 'w': it is a NoneType"),
        "list": ([torch.ones(1)], "it holds a list, not a state dict"),
        "tensor": (torch.ones(1), "it holds a Tensor, not a state dict"),
        "key": ({3: torch.ones(1)}, "the key 3 of its state dict"),
        "NUL": ({"a\0": torch.ones(1)}, "NUL"),
        "sparse": ({"w": torch.eye(3).to_sparse()}, "tensor 'w': it is sparse"),
        "meta": ({"w": torch.empty(3, device="meta")}, "tensor 'w': it is sparse, quantized or"),
        "repeats": ({"w": torch.ones(1).expand(10**15)}, "tensor 'w': it repeats its elements"),
        "dtype": ({"w": torch.ones(1, dtype=torch.complex128)}, "torch.complex128 has no count"),
    }


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # torch 2.14 tells it
@pytest.mark.parametrize(
    "case",
    ["number", "nothing", "list", "tensor", "key", "NUL", "sparse", "meta", "repeats", "dtype"],
)
def test_what_is_no_state_dict_of_plain_tensors_is_refused(save: Any, case: str) -> None:
    thing, message = things()[case]
    refused(save(thing), message)


def test_a_compressed_member_is_refused_before_torch_unpacks_it(save: Any, path: Path) -> None:
    import torch

    with zipfile.ZipFile(save({"w": torch.ones(9)})) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    refused(path, "compressed")


@pytest.mark.parametrize("cut", [0, 1, 7, 100, -1, -30, -200])
def test_a_file_that_is_cut_off_is_refused(save: Any, cut: int) -> None:
    import torch

    path = save({"w": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:cut])
    refused(path, "not a zip archive")


def test_any_byte_of_the_pickle_may_be_wrong(save: Any, path: Path) -> None:
    import torch

    whole = save({"w": torch.ones(3), "v": torch.ones(2, dtype=torch.bfloat16)}).read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        (info,) = [each for each in archive.infolist() if each.filename.endswith("data.pkl")]
    start = whole.index(archive.read(info)) if archive.fp else whole.index(b"\x80\x02")
    outcomes = set()
    for position in range(start, start + info.file_size, 3):
        broken = bytearray(whole)
        broken[position] ^= 1 << position % 8
        path.write_bytes(broken)
        try:
            read_all(path)
            outcomes.add("read")
        except FormatError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_a_file_that_changes_its_size_is_noticed(save: Any) -> None:
    import torch

    with open_torch(save({"w": torch.ones(100_000)})) as reader:
        os.truncate(reader.files[0], 1000)
        with pytest.raises(FormatError, match="changed while it was read") as caught:
            reader.read_into("w", 0, memoryview(bytearray(400_000)))
    assert caught.value.error_code == "AH063"


def test_a_path_that_is_not_there_has_a_code_of_its_own(path: Path) -> None:
    assert refused(path, "No such file").error_code == "AH025"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two files and their index, in the names of transformers."""
    import torch

    torch.save({"a": torch.ones(2), "c": torch.ones(1)}, tmp_path / "pytorch_model-1.bin")
    torch.save({"b": torch.zeros(3)}, tmp_path / "pytorch_model-2.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    weight_map = {"a": 1, "b": 2, "c": 1}
    named = {name: f"pytorch_model-{number}.bin" for name, number in weight_map.items()}
    index.write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": named}))
    return index


@pytest.mark.parametrize("by", ["index", "directory"])
def test_shards_are_one_model(shards: Path, by: str) -> None:
    (shards.parent / "config.json").write_text("{}")
    path = shards if by == "index" else shards.parent
    assert list(read_all(path)) == ["a", "c", "b"]
    with open_torch(path) as reader:
        assert [file.name for file in reader.files] == [
            "pytorch_model.bin.index.json", "pytorch_model-1.bin", "pytorch_model-2.bin",
        ]  # fmt: skip


def test_an_index_that_its_shards_contradict_is_refused(shards: Path) -> None:
    text = shards.read_text()
    shards.write_text(text.replace('"b": "pytorch_model-2', '"b": "pytorch_model-1'))
    with pytest.raises(FormatError, match=r"tensor 'b'"), open_torch(shards):
        pass


def test_pytorch_model_bin_goes_before_other_files(tmp_path: Path) -> None:
    import torch

    torch.save({"w": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    torch.save({"lr": torch.ones(1)}, tmp_path / "optimizer.pt")
    assert list(read_all(tmp_path)) == ["w"]


def test_it_is_offered_through_the_hook() -> None:
    (weight_format,) = arc_halo_weight_formats()
    assert (weight_format.name, weight_format.write) == ("torch", None)
    assert "pytorch_model.bin.index.json".endswith(weight_format.suffixes)
    assert not "model.safetensors.index.json".endswith(weight_format.suffixes)
