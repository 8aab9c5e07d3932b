"""Arc-Halo: declarative model fusion on PostgreSQL.

    import arc_halo

    with arc_halo.connect() as halo:
        halo.models.list()

Everything here is imported when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from arc_halo._version import __version__ as __version__

if TYPE_CHECKING:
    from arc_halo.api import Halo as Halo
    from arc_halo.api import connect as connect
    from arc_halo.errors import ArcHaloError as ArcHaloError
    from arc_halo.hookspecs import hookimpl as hookimpl
    from arc_halo.inference.blocks import LayerKV as LayerKV
    from arc_halo.inference.layouts import KVLayout as KVLayout
    from arc_halo.inference.layouts import LayerShape as LayerShape
    from arc_halo.outputs import CombineContext as CombineContext
    from arc_halo.outputs import Outputs as Outputs
    from arc_halo.project import Project as Project
    from arc_halo.types import BodyStore as BodyStore
    from arc_halo.types import ChunkBodies as ChunkBodies
    from arc_halo.types import FuseContext as FuseContext
    from arc_halo.types import FusionStrategy as FusionStrategy
    from arc_halo.types import ModelRunner as ModelRunner
    from arc_halo.types import Predictor as Predictor
    from arc_halo.types import RunnerContext as RunnerContext
    from arc_halo.types import TensorCodec as TensorCodec
    from arc_halo.types import Vocabulary as Vocabulary
    from arc_halo.types import WeightFormat as WeightFormat
    from arc_halo.types import WorkExecutor as WorkExecutor

_HOMES = {
    "ArcHaloError": "arc_halo.errors",
    "BodyStore": "arc_halo.types",
    "WorkExecutor": "arc_halo.types",
    "ChunkBodies": "arc_halo.types",
    "FuseContext": "arc_halo.types",
    "FusionStrategy": "arc_halo.types",
    "CombineContext": "arc_halo.outputs",
    "KVLayout": "arc_halo.inference.layouts",
    "LayerKV": "arc_halo.inference.blocks",
    "LayerShape": "arc_halo.inference.layouts",
    "ModelRunner": "arc_halo.types",
    "Outputs": "arc_halo.outputs",
    "Predictor": "arc_halo.types",
    "RunnerContext": "arc_halo.types",
    "Halo": "arc_halo.api",
    "Project": "arc_halo.project",
    "TensorCodec": "arc_halo.types",
    "Vocabulary": "arc_halo.types",
    "WeightFormat": "arc_halo.types",
    "connect": "arc_halo.api",
    "hookimpl": "arc_halo.hookspecs",
}

__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'arc_halo' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
