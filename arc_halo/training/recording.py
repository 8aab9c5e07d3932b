"""Gradients written down: their norms as series, and with the weights of the session's model what
was last of each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from arc_halo.errors import ArcHaloError, InvalidInputError, NotFoundError, TrainingError
from arc_halo.store import gradients as store_of
from arc_halo.store.gradients import GradientRow
from arc_halo.training.delivering import Delivery
from arc_halo.training.gradients import SCOPE, TOTAL, Gradient, read, total_norm
from arc_halo.training.logging import PointLog
from arc_halo.training.steps import whole_step
from arc_halo.weights.arrays import build_arrays, fresh_key
from arc_halo.weights.building import Recipe
from arc_halo.weights.store import WeightStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger("arc_halo.training")

TRIES = 3
"""How often tensors are stored anew that a collection took before they were pointed to."""


class Recording:
    """The part of a session that is about gradients."""

    step: int

    _gradients: GradientRecorder
    _is_over: bool
    _log: PointLog

    def record_gradients(
        self,
        source: Any,
        *,
        step: int | None = None,
        epoch: float | None = None,
        tensors: bool = False,
    ) -> None:
        """Record how large the gradients are, after `backward`: of a torch module, or arrays by
        the names of their weights, with None for one that requires none.

        Norms are logged, in the scope `gradients` for each weight and as `gradient_norm` of all,
        at `step` or at the one that was logged last. With the weights of the model stands what was
        last of each, from the next `flush` or the end on. With `tensors` the gradients themselves
        are stored there too, and this waits for it. Raises `InvalidInputError` for what is no
        gradient, and, with `tensors`, `NotFoundError` where the model has none of these weights,
        and `DatabaseError`.
        """
        if self._is_over:
            self._log.tell(
                "late gradients", "gradients came after the end of the session: not recorded"
            )
            return
        at = self.step if step is None else _whole(step)
        found = read(source)
        if found and all(each.norm is None for each in found):
            self._log.tell("gradients", "there are no gradients to record: do it after `backward`")
        self._log.put({g.name: g.norm for g in found if g.norm is not None}, at, epoch, SCOPE)
        if (total := total_norm(found)) is not None:
            self._log.put({TOTAL: total}, at, epoch, "train")
        self._gradients.keep(found)
        if tensors:
            self._check_at_work()
            self._gradients.write_tensors(found)
            self._gradients.settle()

    def _check_at_work(self) -> None:
        raise NotImplementedError


class GradientRecorder:
    """What was recorded last of each weight, until it is written; and tensors, written at once."""

    def __init__(
        self,
        delivery: Delivery,
        weights: Callable[[], WeightStore],
        session_id: UUID,
        lease: UUID,
        model: str,
    ) -> None:
        self._delivery = delivery
        self._weights = weights
        self._session_id = session_id
        self._lease = lease
        self._model = model
        self._waiting: dict[str, GradientRow] = {}

    def keep(self, gradients: Sequence[Gradient]) -> None:
        """Keep these to be written by `settle`."""
        for each in gradients:
            before = self._waiting.get(each.name)
            norm = before.norm if before and each.norm is None else each.norm
            self._waiting[each.name] = GradientRow(
                name=each.name, requires_grad=each.requires_grad, norm=norm
            )

    def settle(self) -> bool:
        """Write what was kept; False, with a warning, where it cannot be and is kept on."""
        if not self._waiting:
            return True
        try:
            self._delivery.record_gradients(list(self._waiting.values()))
        except ArcHaloError as exc:
            logger.warning("gradients are not recorded with the weights: %s", exc.message)
            return False
        self._waiting.clear()
        return True

    def close(self) -> None:
        self.settle()
        self._delivery.close()

    def write_tensors(self, gradients: Sequence[Gradient]) -> int:
        """Store gradients as those of the model's weights; how many. It waits for the database.

        Those that are of no weight of the model are left out, with a warning. Raises
        `NotFoundError` where all are, `TrainingError`, `DatabaseError`.
        """
        store = self._weights()
        with store.pool.connection() as conn:
            known = store_of.weight_names(conn, self._session_id)
        having = [each for each in gradients if each.value is not None]
        arrays = {each.name: each.array() for each in having if each.name in known}
        if not arrays:
            raise NotFoundError(
                f"none of the gradients is of a weight of {self._model}",
                hint="register the model with its weights, under the names they are trained by",
            )
        if len(arrays) < len(having):
            logger.warning(
                "%d gradients are of no weight of %s: not kept",
                len(having) - len(arrays),
                self._model,
            )
        for _ in range(TRIES):
            root = self._store(store, arrays)
            with store.pool.connection() as conn, conn.transaction():
                if store_of.set_tensors(conn, self._session_id, self._lease, root) == len(arrays):
                    return len(arrays)
        raise TrainingError(
            "the gradients could not be recorded with the weights: another program has the session "
            "now, or a collection took them",
            hint="collect with a grace period while models are trained",
        )

    def _store(self, store: WeightStore, arrays: Mapping[str, NDArray[Any]]) -> bytes:
        about = {"session": str(self._session_id), "of": "gradients"}
        recipe = Recipe(purpose="write", key=fresh_key(), recipe=about)
        return build_arrays(store, recipe, arrays).root


def _whole(step: Any) -> int:
    found = whole_step(step)
    if found is None:
        raise InvalidInputError(f"step={step!r:.80}: write a whole number from 0")
    return found
