"""What is not installed is told by the extra that has it."""

from __future__ import annotations

import importlib
import sys

import pytest

from arc_halo.errors import ArcHaloError


@pytest.mark.parametrize("name", ["transformers", "lightning"])
def test_a_library_that_is_missing_is_told_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, f"arc_halo.integrations.{name}", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ArcHaloError, match=f"{name} is not installed") as caught:
        importlib.import_module(f"arc_halo.integrations.{name}")
    assert caught.value.hint == f"pip install 'arc-halo[{name}]'"
