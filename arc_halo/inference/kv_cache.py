"""The KV cache of one model for one tenant: what of a prompt is there already, and what is new.

Nothing here knows an engine. Keys and values come and go as arrays, of all layers and of tokens
from the first one on; what they are called is decided by `keys`, how they are stored by `blocks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from types import TracebackType

import numpy as np

from arc_halo.errors import DatabaseError, InvalidInputError, UnknownPluginError
from arc_halo.inference.blocks import (
    INT8,
    RAW,
    BlockCodec,
    Cut,
    LayerKV,
    check_arrays,
    empty_layers,
)
from arc_halo.inference.checking import check_count, check_limit
from arc_halo.inference.keys import Scope, Tokens, chain, namespace, token_blocks
from arc_halo.inference.layouts import KVLayout, check_layout, usable_length
from arc_halo.inference.pinning import pin, unpin
from arc_halo.inference.storing import BlockStore, Chain, Write
from arc_halo.inference.writing import FORKED, KVWriter
from arc_halo.plain import check_texts
from arc_halo.store import kv_cache as store
from arc_halo.store import kv_cache_reading as reading
from arc_halo.store.kv_cache import Counts
from arc_halo.store.rows import Connection, Pool
from arc_halo.store.silence import hung_up_after, patient
from arc_halo.types import TensorCodec

BLOCK_TOKENS = 64
STORAGE = "planes"

CONNECTION_SECONDS = 2.0
SILENCE_SECONDS = 5.0
"""How long a lookup waits for a connection, and for a server that says nothing: who asks is about
to compute the prompt instead."""

QUEUE_BYTES = 512 * 1024**2
"""Keys and values that may wait to be written; what comes beside them is not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """The keys and values of the first `length` tokens of a prompt, every byte verified.

    A layer with a window has those of its last `window - 1` tokens, see its `start`. With a length
    of 0 there are no arrays.
    """

    length: int
    layers: tuple[LayerKV, ...] = ()


class KVCache:
    """Blocks of keys and values in the database, of one layout, for one scope.

    `storage` is a codec's name, or `int8`, which is lossy; blocks of one storage are never seen by
    caches of another.
    """

    def __init__(
        self,
        pool: Pool,
        codecs: Mapping[str, TensorCodec],
        layout: KVLayout,
        scope: Scope,
        *,
        block_tokens: int = BLOCK_TOKENS,
        storage: str = STORAGE,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        check_layout(layout, block_tokens)
        if storage not in (RAW, INT8) and storage not in codecs:
            raise UnknownPluginError(
                f"no loaded plugin provides the codec {storage!r}",
                hint="write planes, zstd, raw, or int8, which is lossy",
            )
        if storage in codecs and codecs[storage].needs_base:
            raise InvalidInputError(f"the codec {storage!r} keeps deltas", code="AH006")
        self.layout = layout
        self.scope = scope
        self.block_tokens = block_tokens
        self.storage = storage
        self._pool = pool
        self._groups = layout.groups
        digest = layout.digest()
        self._spaces = [
            namespace(scope, digest, index, block_tokens, storage)
            for index in range(len(self._groups))
        ]
        self._codecs = [
            BlockCodec(layout, group, block_tokens, codecs, storage) for group in self._groups
        ]
        self._writer = KVWriter(BlockStore(pool, scope), queue_bytes)

    def match(self, tokens: Tokens) -> int:
        """How many of the first tokens seem to be there. One query; nothing is verified, and it
        may be gone by the time it is loaded: only `load` says what there is."""
        cuts = self._cuts(tokens)
        with self._asking(Counts()) as conn:
            present = self._present(conn, cuts)
        return usable_length(self._groups, present, self.block_tokens, len(tokens))

    def load(self, tokens: Tokens, *, limit: int | None = None) -> Prefix:
        """The keys and values of the longest prefix that is there, of `limit` tokens at most.

        Bytes that are not what was stored are as good as not there. Raises `DatabaseError`, after
        seconds where the database is away or hangs.
        """
        cuts = self._cuts(tokens)
        check_limit(limit)
        limit = len(tokens) if limit is None else min(limit, len(tokens))
        cuts = [cut[: -(-limit // self.block_tokens)] for cut in cuts]
        counts = Counts(lookups=1, asked_tokens=limit)
        with self._asking(counts) as conn:
            damaged: set[bytes] = set()
            found, used = self._loaded(conn, cuts, limit, counts, damaged)
        counts.hits, counts.hit_tokens = int(found.length > 0), found.length
        counts.damaged_blocks = len(damaged)
        self._writer.used(used, damaged, counts)
        return found

    def sample(self, count: int) -> Iterator[tuple[list[int], Prefix]]:
        """Prompts at random that end with a block, and what is stored of each, without use of it
        being made. Where all layers slide these are first blocks: no other says what came before
        it. Of the blocks that are drawn some may be of other caches with the same weights."""
        check_count("count", count)
        scope = self.scope
        with self._connection() as conn:
            found = reading.prompts(
                conn, tenant=scope.tenant, weights_root=scope.weights, limit=count
            )
        for key, raw in found.items():
            tokens: list[int] = np.frombuffer(raw, "<u4").tolist()
            cuts = self._cuts(tokens)
            # Other layouts, adapters and storages have the same weights, and other keys.
            if cuts[0] and cuts[0][-1].key == key:
                counts = Counts()
                with self._asking(counts) as conn:
                    prefix, _ = self._loaded(conn, cuts, len(tokens), counts, set())
                yield tokens, prefix

    def store(self, tokens: Tokens, layers: Sequence[LayerKV]) -> bool:
        """Have the blocks of these tokens written that are not there yet, by another thread.

        The layers are those of the first tokens, as many as there are; or they begin where a block
        does that follows stored ones, without which nothing is kept. The arrays must not be
        written over from now on. False where too much waits already, and nothing of it is kept.
        Raises `InvalidInputError` for arrays that are not of the layout.
        """
        check_arrays(self.layout, layers)
        stop = layers[0].stop
        if stop > len(tokens):
            raise InvalidInputError(
                f"keys and values of {stop} tokens came with {len(tokens)} tokens", code="AH006"
            )
        chains = []
        for codec, cuts in zip(self._codecs, self._cuts(tokens[:stop]), strict=True):
            there = tuple(cut for cut in cuts if codec.holds(cut.index, layers))
            chains.append(Chain(codec=codec, cuts=there, before=_keys_before(cuts, there)))
        size = sum(array.nbytes for layer in layers for array in layer.both)
        return self._writer.put(Write(chains=tuple(chains), layers=tuple(layers), size_bytes=size))

    def pin(self, tokens: Tokens, label: str = "") -> int:
        """Keep the blocks of the longest prefix that is there, whatever else has to go; how many
        tokens that is. Raises `RefusedError` where the pinned ones would have more than half of the
        budget, or of the tenant's quota.
        """
        check_texts(label=label)
        cuts = self._cuts(tokens)
        with self._connection() as conn, conn.transaction():
            store.lock(conn)
            there = store.places(conn, [cut.key for group in cuts for cut in group])
            present = [[cut.key in there for cut in group] for group in cuts]
            length = usable_length(self._groups, present, self.block_tokens, len(tokens))
            if not length:
                return 0
            wanted = [cut for _, cut in self._wanted(cuts, length)]
            # Of blocks that follow one another the last holds the others.
            followed = {cut.parent_key for cut in wanted}
            ends = [cut.key for cut in wanted if cut.key not in followed]
            last = cuts[0][(length - 1) // self.block_tokens].key
            blocks = [there[cut.key] for cut in wanted]
            pin(conn, last, blocks, ends, label or "")
        return length

    def unpin(self, tokens: Tokens) -> bool:
        """Let the blocks of the longest prefix that is pinned go like others, unless another pin
        needs them; False where no prefix is pinned."""
        keys = [cut.key for cut in self._cuts(tokens)[0]]
        with self._connection() as conn, conn.transaction():
            store.lock(conn)
            return unpin(conn, keys)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what was stored is written; False where it is not, or waits still."""
        return self._writer.flush(timeout)

    def close(self, timeout: float | None = 30.0) -> None:
        """Write what waits, and end the thread that does."""
        self._writer.close(timeout)

    def __enter__(self) -> KVCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        self._check_process()
        with patient(self._pool) as conn:
            yield conn

    def _check_process(self) -> None:
        """A forked process would talk over its parent's connections."""
        if self._writer.is_forked():
            raise DatabaseError(FORKED)

    @contextmanager
    def _asking(self, counts: Counts) -> Iterator[Connection]:
        self._check_process()
        with (
            self._pool.connection(CONNECTION_SECONDS) as conn,
            hung_up_after(conn, SILENCE_SECONDS, lambda: counts.loaded_bytes),
        ):
            yield conn

    def _cuts(self, tokens: Tokens) -> list[list[Cut]]:
        """The full blocks of a prompt, by group."""
        blocks = token_blocks(tokens, self.block_tokens)
        found = []
        for group, space in zip(self._groups, self._spaces, strict=True):
            keys = chain(space, blocks)
            before = [None, *keys[:-1]] if keys else []
            parents = before if group.window is None else [None] * len(keys)
            found.append(
                [
                    Cut(key=key, parent_key=parent, index=index, tokens=block)
                    for index, (key, parent, block) in enumerate(
                        zip(keys, parents, blocks, strict=True)
                    )
                ]
            )
        return found

    def _present(self, conn: Connection, cuts: Sequence[Sequence[Cut]]) -> list[list[bool]]:
        keys = [cut.key for group in cuts for cut in group]
        places = set(store.match(conn, keys)) if keys else set()
        count = len(cuts[0])
        return [
            [group * count + index in places for index in range(count)]
            for group in range(len(cuts))
        ]

    def _loaded(
        self,
        conn: Connection,
        cuts: Sequence[Sequence[Cut]],
        limit: int,
        counts: Counts,
        damaged: set[bytes],
    ) -> tuple[Prefix, list[bytes]]:
        """What is there, and the keys of its blocks. Whatever turns out not to be is left out of
        what is asked for next, so this ends."""
        has_windows = any(group.window is not None for group in self._groups)
        present = (
            self._present(conn, cuts) if has_windows else [[True] * len(group) for group in cuts]
        )
        while length := usable_length(self._groups, present, self.block_tokens, limit):
            starts = [0] * len(self.layout.layers)
            for group in self._groups:
                for layer in group.layers:
                    starts[layer] = group.first_token(length)
            layers = empty_layers(self.layout, starts, length)
            wanted = self._wanted(cuts, length)
            good = self._fill(conn, wanted, layers, counts, damaged)
            for (group_index, cut), is_good in zip(wanted, good, strict=True):
                present[group_index][cut.index] = is_good
            shorter = usable_length(self._groups, present, self.block_tokens, limit)
            if shorter and self._covers(shorter, length):
                used = [cut.key for _, cut in self._wanted(cuts, shorter)]
                return Prefix(length=shorter, layers=_shortened(layers, shorter)), used
        return Prefix(length=0), []

    def _wanted(self, cuts: Sequence[Sequence[Cut]], length: int) -> list[tuple[int, Cut]]:
        """The blocks that are needed to go on after `length` tokens, and their groups."""
        last = -(-length // self.block_tokens)
        return [
            (index, cut)
            for index, (group, chain_) in enumerate(zip(self._groups, cuts, strict=True))
            for cut in chain_[group.first_token(length) // self.block_tokens : last]
        ]

    def _covers(self, shorter: int, length: int) -> bool:
        """Whether arrays that end with `length` have all that is needed to end with `shorter`."""
        return all(g.first_token(shorter) >= g.first_token(length) for g in self._groups)

    def _fill(
        self,
        conn: Connection,
        wanted: Sequence[tuple[int, Cut]],
        layers: Sequence[LayerKV],
        counts: Counts,
        damaged: set[bytes],
    ) -> list[bool]:
        """Load blocks into arrays; which of them are good."""
        good = [False] * len(wanted)
        parts = store.load(conn, [cut.key for _, cut in wanted])
        for place, of_block in groupby(parts, key=lambda part: part.place):
            group_index, cut = wanted[place]
            block = list(of_block)
            good[place] = self._codecs[group_index].decode(cut, block, layers)
            counts.loaded_bytes += sum(part.body.nbytes for part in block)
            if not good[place]:
                damaged.add(cut.key)
        return good


def _keys_before(cuts: Sequence[Cut], held: Sequence[Cut]) -> tuple[bytes, ...]:
    """Of the blocks that come before those in the arrays, if these follow any."""
    if not held or held[0].parent_key is None:
        return ()
    return tuple(cut.key for cut in cuts[: held[0].index])


def _shortened(layers: Sequence[LayerKV], length: int) -> tuple[LayerKV, ...]:
    return tuple(
        LayerKV(
            keys=layer.keys[:, : length - layer.start],
            values=layer.values[:, : length - layer.start],
            start=layer.start,
        )
        for layer in layers
    )
