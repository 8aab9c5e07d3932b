"""Building weight sets: tensor by tensor, committed as they come, resumed where they stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from arc_halo.errors import WeightsError
from arc_halo.store import builds, projects
from arc_halo.store.builds import BuildGoneError
from arc_halo.store.rows import Connection
from arc_halo.store.tensors import insert_tensors
from arc_halo.tensors import digests
from arc_halo.types import JsonObject, TensorInfo
from arc_halo.weights.bases import Bases
from arc_halo.weights.making import Produce, TensorMaker
from arc_halo.weights.store import Advance, WeightStore, no_progress
from arc_halo.weights.threads import Cancellation, in_threads
from arc_halo.weights.writing import ChunkWriter, Heart, Session, Totals

GROUP_TENSORS = 1000
"""Small tensors that are entered together at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a build makes. Equal keys make equal weights, so the key alone decides what is redone.

    `expected` is the root that must come out, where it is known beforehand. Chunks are stored as
    deltas against the weights of root `delta_from` where that pays.
    """

    purpose: str
    key: bytes
    recipe: JsonObject
    project: str | None = None
    codec: str | None = None
    delta_from: bytes | None = None
    expected: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A finished build. `tensors_built` counts those made now, not those found done."""

    root: bytes
    tensor_count: int
    tensors_built: int
    size_bytes: int
    new_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBuild:
    """A build to be filled. `tensors` has (name, digest, place) of what earlier runs have made.

    Chunks that are touched from `since` on are taken by no collection.
    """

    id: UUID
    since: datetime
    tensors: Sequence[tuple[str, bytes, int]]


Fill = Callable[[OpenBuild], tuple[int, Totals]]
"""Makes what a build lacks; how many tensors that were, and what was stored for them."""

TRIES = 5
"""How often a build is begun anew that another program closed and let go meanwhile."""


def build(
    store: WeightStore,
    recipe: Recipe,
    tensors: Sequence[TensorInfo],
    produce: Produce,
    *,
    advance: Advance = no_progress,
) -> Built:
    """Make the weight set of `recipe`, or find it made.

    Tensors that an earlier, interrupted run has finished are not produced again. Nothing points
    to the set when this returns. Raises what `produce` raises, and `WeightsError` when the
    result is not `recipe.expected`.
    """

    def fill(opened: OpenBuild) -> tuple[int, Totals]:
        missing = _missing(tensors, opened.tensors)
        if opened.tensors:
            advance(sum(t.size_bytes for t in tensors) - sum(t.size_bytes for _, t in missing))
        session = Session(
            build_id=opened.id,
            since=opened.since,
            codec=recipe.codec,
            bases=Bases.of_root(store, recipe.delta_from),
            heart=Heart(),
        )
        return len(missing), _make_all(store, session, missing, produce, advance)

    return fill_build(store, recipe, len(tensors), fill)


def fill_build(store: WeightStore, recipe: Recipe, tensor_count: int, fill: Fill) -> Built:
    """Have the weight set of `recipe`, which has so many tensors, filled, or find it made."""
    for _ in range(TRIES - 1):
        with suppress(BuildGoneError):
            return _fill_build(store, recipe, tensor_count, fill)
    return _fill_build(store, recipe, tensor_count, fill)


def _fill_build(store: WeightStore, recipe: Recipe, tensor_count: int, fill: Fill) -> Built:
    with store.pool.connection() as conn:
        known = builds.reuse(conn, recipe.key)
        if known is not None:
            return _found(known)
        build_id = _open(conn, recipe)
        # After the build can be seen: what is touched from now on, no collection takes.
        since = builds.clock(conn)
        built = builds.built_tensors(conn, build_id)
    made, totals = fill(OpenBuild(id=build_id, since=since, tensors=built))
    completed = _complete(store, recipe, build_id, tensor_count)
    return _found(completed, built=made, totals=totals)


def _missing(
    tensors: Sequence[TensorInfo], built: Sequence[tuple[str, bytes, int]]
) -> list[tuple[int, TensorInfo]]:
    """What is still to be made, and the places left for it.

    The places are those of the file, unless what is built came from one in another order.
    """
    done = {name for name, _, _ in built}
    taken = {ordinal for _, _, ordinal in built}
    free = (ordinal for ordinal in range(len(tensors)) if ordinal not in taken)
    return list(zip(free, (info for info in tensors if info.name not in done), strict=False))


def _open(conn: Connection, recipe: Recipe) -> UUID:
    with conn.transaction():
        if recipe.project is not None:
            projects.ensure(conn, recipe.project)
        return builds.open_build(
            conn,
            project=recipe.project,
            purpose=recipe.purpose,
            recipe_key=recipe.key,
            recipe=recipe.recipe,
        )


def _make_all(
    store: WeightStore,
    session: Session,
    missing: Sequence[tuple[int, TensorInfo]],
    produce: Produce,
    advance: Advance,
) -> Totals:
    """Make each missing tensor, by `store.threads` threads with a connection each."""
    cancellation = Cancellation()

    def make(group: Sequence[tuple[int, TensorInfo]]) -> Totals:
        # Guarded before a connection is waited for: the server may be what failed elsewhere.
        with (
            cancellation.guard(),
            store.pool.connection() as conn,
            cancellation.watch(conn),
        ):
            writer = ChunkWriter(store, conn, session)
            maker = TensorMaker(store, writer, produce, advance, cancellation)
            made = [(place, info.name, maker.make(info)) for place, info in group]
            maker.flush()
            with conn.transaction():
                builds.as_step(conn)
                ids = insert_tensors(conn, [tensor for _, _, tensor in made])
                named = [(name, place, ids[new.digest]) for place, name, new in made]
                builds.add_tensors(conn, session.build_id, named)
            return writer.totals

    parts = in_threads(store.threads, make, _groups(missing, store), cancellation)
    return Totals(sum(part.new_bytes for part in parts), sum(part.stored_bytes for part in parts))


def _groups(
    tensors: Sequence[tuple[int, TensorInfo]], store: WeightStore
) -> Iterator[list[tuple[int, TensorInfo]]]:
    """Tensors alone, but neighbours below a chunk together: those are entered at once."""
    group: list[tuple[int, TensorInfo]] = []
    size_bytes, limit = 0, store.batch_bytes
    for ordinal, info in tensors:
        if info.size_bytes >= store.chunk_bytes:
            yield [(ordinal, info)]
            continue
        if len(group) == GROUP_TENSORS or size_bytes + info.size_bytes > limit:
            yield group
            group, size_bytes = [], 0
        group.append((ordinal, info))
        size_bytes += info.size_bytes
    if group:
        yield group


def _complete(
    store: WeightStore, recipe: Recipe, build_id: UUID, tensor_count: int
) -> builds.WeightSet:
    """Close the build. What another program has finished meanwhile counts: equal keys, one set.

    Raises `BuildGoneError` where one that makes the same tensors in another order was in the way.
    """
    with store.pool.connection() as conn, conn.transaction():
        made = builds.lock(conn, build_id)
        if made is not None:
            return made
        # From the rows, not from what this program made: the two must never disagree.
        built = builds.built_tensors(conn, build_id)
        if len(built) < tensor_count:
            raise BuildGoneError("another program builds the same weights in another order")
        root = digests.weights_root((name, digest) for name, digest, _ in built)
        if recipe.expected in (None, root):
            return builds.complete(conn, build_id, root)
        builds.drop(conn, build_id)
    raise WeightsError(
        f"the weights came out as {digests.format_digest(root)}, "
        f"not as {digests.format_digest(recipe.expected or b'')}",
        hint="the source changed while it was read: plan again",
    )


def _found(found: builds.WeightSet, *, built: int = 0, totals: Totals | None = None) -> Built:
    totals = totals or Totals()
    return Built(
        root=bytes(found.root),
        tensor_count=found.tensor_count,
        tensors_built=built,
        size_bytes=found.size_bytes,
        new_bytes=totals.new_bytes,
        stored_bytes=totals.stored_bytes,
    )
