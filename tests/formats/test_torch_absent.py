"""What a file of torch.save comes to where torch is not installed, or is not needed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from arc_halo.errors import FormatError
from arc_halo.formats.torch_files import open_torch

# A None in sys.modules makes the import fail as if it were not installed.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from pathlib import Path
from arc_halo.errors import PluginError
from arc_halo.formats.torch_files import open_torch
try:
    with open_torch(Path(sys.argv[1])):
        pass
except PluginError as exc:
    print(exc.hint)
"""


def test_without_torch_the_hint_is_how_to_get_it(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(path)], capture_output=True, text=True, check=True
    )
    assert "pip install 'arc-halo[torch]'" in done.stdout


def test_the_plugins_load_without_importing_torch() -> None:
    code = (
        "import sys; from arc_halo.plugins import PluginManager; PluginManager().formats; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("data", [b"", b"not a zip", b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(99)])
def test_what_is_no_archive_is_refused_before_torch_is_needed(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    with pytest.raises(FormatError, match="not a zip archive"), open_torch(path):
        pass
