"""Running a merge from the database to the database: planned, entered as tasks, worked at."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from arc_halo.errors import NotFiniteError, WeightsError
from arc_halo.fusion.compatibility import Table
from arc_halo.fusion.computing import surveyed
from arc_halo.fusion.driving import LOCAL, Workers, drive
from arc_halo.fusion.finiteness import every_not_finite
from arc_halo.fusion.planning import plan_tensors
from arc_halo.fusion.pulse import pulse
from arc_halo.fusion.recipes import AdapterInput, FusionInput, FusionRecipe
from arc_halo.fusion.tensor_recipes import TensorRecipe
from arc_halo.fusion.working import share_of, stored_sources
from arc_halo.store import builds, fusions
from arc_halo.store.fusions import NewTask
from arc_halo.store.rows import Connection
from arc_halo.tensors.digests import format_digest
from arc_halo.weights.building import Built, OpenBuild, Recipe, fill_build
from arc_halo.weights.store import Advance, WeightStore, no_progress
from arc_halo.weights.writing import Totals


def fuse(
    store: WeightStore,
    recipe: FusionRecipe,
    *,
    project: str | None = None,
    workers: Workers = LOCAL,
    keep: Sequence[bytes] = (),
    advance: Advance = no_progress,
) -> Built:
    """Make the weights that `recipe` describes, or find them made; returns their root.

    Each tensor commits by itself; one whose key was computed before, for whatever merge, is not
    computed again. Tensors go through part by part, within `store.memory_bytes` unless the
    strategy wants them whole. Collection leaves its inputs alone meanwhile, and the weights of the
    roots `keep`. Raises `IncompatibleModelsError` before anything is computed, and
    `FusionError` for what a strategy cannot do, `NotFiniteError` for NaN and infinities.
    """
    tensors = plan_merge(store, recipe)
    request = Recipe(purpose="fuse", key=recipe.key, recipe=recipe.identity(), project=project)
    strategies = {recipe.strategy.name: (recipe.strategy, recipe.strategy_version)}

    def fill(opened: OpenBuild) -> tuple[int, Totals]:
        with store.pool.connection() as conn:
            builds.want(conn, [*recipe.roots, *keep])
            is_entered = fusions.is_entered(conn, opened.id)
        with pulse(store, opened.id):
            tasks = [] if is_entered else _tasks(store, recipe, tensors)
        with store.pool.connection() as conn, conn.transaction():
            reused = fusions.enter(conn, opened.id, tasks)
        done = {name for name, _, _ in opened.tensors}
        advance(sum(reused) + sum(each.size_bytes for each in tensors if each.name in done))
        try:
            return drive(store, strategies, opened, workers, advance)
        except NotFiniteError as exc:
            sources = partial(stored_sources, store)
            raise every_not_finite(exc, tensors, sources, share_of(store)) from exc

    return fill_build(store, request, len(tensors), fill)


def plan_merge(store: WeightStore, recipe: FusionRecipe) -> list[TensorRecipe]:
    """The tensors of a merge whose inputs are in the database.

    Raises `IncompatibleModelsError`, and `WeightsError` for an input that is not stored.
    """
    with store.pool.connection() as conn:
        members = [_table(conn, member) for member in recipe.members]
        base = _table(conn, recipe.base) if recipe.base else None
        adapters = {
            adapter.model: _table(conn, adapter)
            for member in recipe.members
            for adapter in member.adapters
        }
    return plan_tensors(recipe, members, base, adapters)


def output_bytes(store: WeightStore, recipe: FusionRecipe) -> int:
    """Raw bytes that `fuse` will write: as many as the first member has; 0 while it has none."""
    root = recipe.members[0].root
    if root is None:
        return 0
    with store.pool.connection() as conn:
        found = builds.sets_by_root(conn, [root]).get(root)
    return found.size_bytes if found else 0


def _table(conn: Connection, source: FusionInput | AdapterInput) -> Table:
    root = source.root or b""
    found = builds.sets_by_root(conn, [root]).get(root)
    if found is None:
        raise WeightsError(
            f"the weights {format_digest(root)} of {source.model} are not stored",
            hint="apply the manifest that declares this model",
            code="AH064",
        )
    tensors = builds.set_tensors(conn, found.id)
    return Table(source.model, {tensor.name: tensor for tensor in tensors})


def _tasks(
    store: WeightStore, recipe: FusionRecipe, tensors: Sequence[TensorRecipe]
) -> list[NewTask]:
    found = surveyed(recipe, tensors, partial(stored_sources, store), share_of(store))
    return [_task(place, tensor) for place, tensor in enumerate(found)]


def _task(place: int, tensor: TensorRecipe) -> NewTask:
    is_computed = tensor.strategy is not None
    return NewTask(
        ordinal=place,
        name=tensor.name,
        size_bytes=tensor.size_bytes,
        labels=tensor.labels(),
        key=tensor.key if is_computed else None,
        recipe=tensor.identity() if is_computed else None,
        taken=None if is_computed else tensor.members[0].digest,
    )
