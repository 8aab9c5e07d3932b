"""Building the weights that the changes of a plan need, before anything visible changes."""

from __future__ import annotations

from arc_halo.errors import WeightsError
from arc_halo.fusion.driving import Workers
from arc_halo.fusion.recipes import FusionRecipe
from arc_halo.fusion.running import fuse, output_bytes
from arc_halo.plugins import PluginManager
from arc_halo.reconcile.changes import Build, Change, FuseBuild, ImportBuild, Plan
from arc_halo.reconcile.progress import Progress
from arc_halo.reconcile.resources import known_recipe, needed_inputs
from arc_halo.transfer.importing import import_weights
from arc_halo.types import Key
from arc_halo.weights.building import Built
from arc_halo.weights.store import WeightStore


class Builder:
    """Imports and fuses what the changes of a plan need, in their order."""

    def __init__(
        self,
        store: WeightStore,
        plan: Plan,
        plugins: PluginManager,
        workers: Workers,
        progress: Progress,
    ) -> None:
        self._store = store
        self._plan = plan
        self._plugins = plugins
        self._workers = workers
        self._progress = progress
        self._roots: dict[str, bytes] = {}

    def run(self) -> dict[Key, Built]:
        built: dict[Key, Built] = {}
        for change in self._plan.changes:
            if change.build is not None:
                built[change.key] = self._build(change, change.build)
                self._roots[change.key.name] = built[change.key].root
        return built

    def _build(self, change: Change, build: Build) -> Built:
        if isinstance(build, ImportBuild):
            return self._import(build)
        return self._fuse(change, build)

    def _import(self, build: ImportBuild) -> Built:
        source = build.source
        with self._progress.task(f"import {source.label}", build.size_bytes) as advance:
            return import_weights(
                self._store,
                source.path,
                self._plugins.format(source.format),
                build.root,
                label=source.label,
                project=self._plan.project,
                codec=source.codec,
                delta_from=self._roots.get(source.delta_from or "", build.delta_root),
                advance=advance,
            )

    def _fuse(self, change: Change, build: FuseBuild) -> Built:
        recipe = self._recipe(change, build)
        size_bytes = output_bytes(self._store, recipe)
        with self._progress.task(f"fuse {change.key.name}", size_bytes) as advance:
            return fuse(
                self._store,
                recipe,
                project=self._plan.project,
                workers=self._workers,
                keep=list(self._roots.values()),
                advance=advance,
            )

    def _recipe(self, change: Change, build: FuseBuild) -> FusionRecipe:
        roots = {**build.roots, **{n: r for n, r in self._roots.items() if n in build.roots}}
        recipe = known_recipe(
            build.spec, self._plugins, roots, build.architectures, build.tokenizers
        )
        if recipe is None:
            needed = needed_inputs(build.spec, self._plugins)
            missing = ", ".join(name for name in needed if roots[name] is None)
            raise WeightsError(
                f"{change.key} cannot be fused: {missing} has no weights", code="AH064"
            )
        return recipe

    def recipe(self, change: Change) -> FusionRecipe | None:
        """The recipe that made the change's weights, now that all roots are known."""
        return self._recipe(change, change.build) if isinstance(change.build, FuseBuild) else None
