"""Modules that stand around a torch module and write something before the names of its weights."""

from __future__ import annotations

from typing import Any

AROUND = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
"""Where each has the module that it is around: those of torch, and of its compiler."""


def unwrapped(module: Any) -> Any:
    """The module itself, of one that is trained in parallel or compiled."""
    while (inner := AROUND.get(type(module).__name__)) and hasattr(module, inner):
        module = getattr(module, inner)
    return module
