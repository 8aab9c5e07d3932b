"""The device that a model computes on, by the name it has in the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from arc_halo.errors import MemberError

if TYPE_CHECKING:
    import torch  # pyright: ignore[reportMissingImports]

PATTERN = r"^(auto|cpu|mps|(cuda|xpu)(:(0|[1-9][0-9]{0,3}))?)$"


def device_of(said: str) -> torch.device:
    """What `device` names; of `auto` the first that there is of cuda, xpu, mps and cpu.

    Raises `MemberError` for a device that this machine, or this build of torch, does not have.
    """
    import torch  # pyright: ignore[reportMissingImports]

    found = list(_found())
    numbered = f"{said}:0" if said in ("cuda", "xpu") else said
    if said != "auto" and numbered not in found:
        raise MemberError(
            f"there is no device {said} here, only {', '.join(found)}", hint=_hint(said)
        )
    return torch.device(found[0] if said == "auto" else numbered)


def _found() -> Iterator[str]:
    """The devices that torch can compute on, the fastest kind first."""
    import torch  # pyright: ignore[reportMissingImports]

    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind)
        if module.is_available():
            yield from (f"{kind}:{number}" for number in range(module.device_count()))
    if torch.backends.mps.is_available():
        yield "mps"
    yield "cpu"


def _hint(said: str) -> str:
    import torch  # pyright: ignore[reportMissingImports]

    otherwise = "`device: auto` takes the best that is there"
    if said.startswith("cuda") and not torch.backends.cuda.is_built():
        return f"this torch is built without CUDA: install one that has it, or {otherwise}"
    return otherwise
