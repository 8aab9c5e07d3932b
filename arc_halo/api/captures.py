"""What was captured inside of models, as part of `halo.inference`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from arc_halo.api._finding import GivenModel, find_roots
from arc_halo.project import Project

if TYPE_CHECKING:
    from arc_halo.inference.activation_captures import ActivationCapture
    from arc_halo.inference.activations import Capture
    from arc_halo.inference.attention import AttentionCapture
    from arc_halo.inference.attention_captures import Attention
    from arc_halo.inference.keeping import Keeping
    from arc_halo.inference.reading import GivenSession
    from arc_halo.inference.selections import Positions
    from arc_halo.store.activations_reading import CaptureRow as ActivationCaptureRow
    from arc_halo.store.attention_reading import CaptureRow


class Captures:
    """Activations and attention."""

    def __init__(self, project: Project) -> None:
        self._project = project

    def capture(
        self,
        module: Any,
        names: str | Iterable[str],
        *,
        positions: Positions | None = None,
        dtype: str | None = None,
        variant: str = "",
        root: bytes | str | None = None,
        budget_bytes: int | None = None,
        ttl_seconds: float | None = None,
    ) -> Capture:
        """Capture what parts of a torch module give, for use in a `with`; stored at its end.

        `names` are patterns of names of modules, with `*` and `?`. `positions` says which tokens:
        a number, a list, a slice or "last"; `dtype` what to keep in: F32, F16 or BF16. Call the
        module within the `with`, or its `generate`: all tokens that it is fed make one input. What
        was captured before is not stored again. `variant` names what hooks of others change;
        `root` saves hashing the weights, where it is known. What goes beyond `budget_bytes`, or was
        there for `ttl_seconds`, goes; where these are not given, what a manifest declares counts.
        Raises `InvalidInputError` for a module in training mode.
        """
        from arc_halo.inference.activations import Capture
        from arc_halo.inference.checking import given_root

        return Capture(
            self._project.weights,
            module,
            names=names,
            positions=positions,
            dtype=dtype,
            variant=variant,
            keeping=self._keeping("activation_cache", budget_bytes, ttl_seconds),
            root=None if root is None else given_root(root),
        )

    def activations(
        self,
        model: Any,
        input_ids: Any = None,
        *,
        names: str | Iterable[str] = "*",
        attention_mask: Any = None,
        inputs: Mapping[str, Any] | None = None,
        positions: Positions | None = None,
        dtype: str | None = None,
        variant: str = "",
        torch: bool = False,
    ) -> dict[str, Any]:
        """Captured activations by the names of modules; what is not there is left out.

        `model` is the torch module, a registered model, or the root of its weights. They are of
        exactly this input: its tokens, its mask, and in `inputs` whatever else the model was given,
        by name. Positions and dtypes may be taken out of more that was kept. Each that is found
        counts a hit. Arrays, or with `torch` tensors.
        """
        from arc_halo.inference import activation_lookup
        from arc_halo.inference.inputs import given_parts
        from arc_halo.tensors import dtypes
        from arc_halo.tensors.torch_tensors import as_torch

        if isinstance(model, bytes | GivenModel):
            with self._project.connection() as conn:
                model = find_roots(conn, model)
        found = activation_lookup.load(
            self._project.weights,
            model,
            given_parts(input_ids, attention_mask, inputs),
            names=names,
            positions=positions,
            dtype=dtype,
            variant=variant,
        )
        if not torch:
            return dict(found)
        return {name: as_torch(each, dtypes.name_of(each.dtype)) for name, each in found.items()}

    def activation_captures(
        self, *, model: str | None = None, limit: int | None = None
    ) -> Sequence[ActivationCaptureRow]:
        """What was captured, a record for each model and input, the newest first.

        `model` is a registered name, name@version, or the beginning of a root of weights in hex.
        """
        from arc_halo.inference import activation_captures

        with self._project.connection() as conn:
            return activation_captures.listed(conn, model=model, limit=limit)

    def activation_capture(self, capture: str | UUID) -> ActivationCapture:
        """What a model gave for an input, by the id of the capture, or the beginning of that (6
        digits or more). Raises `NotFoundError`."""
        from arc_halo.inference import activation_captures

        return activation_captures.read(self._project.weights, capture)

    def delete_activations(self, *captures: str | UUID) -> None:
        """Delete captures of activations, named as for `activation_capture`, all or none.

        What they took is given back by `arc-halo tensors gc`.
        """
        from arc_halo.inference import activation_captures

        with self._project.connection() as conn:
            activation_captures.delete(conn, captures)

    def capture_attention(
        self,
        module: Any,
        *,
        layers: int | Iterable[int] | None = None,
        heads: int | Iterable[int] | None = None,
        dtype: str = "F16",
        tokens: Any = None,
        label: str | None = None,
        session: GivenSession | None = None,
        budget_bytes: int | None = None,
        ttl_seconds: float | None = None,
    ) -> AttentionCapture:
        """Capture the attention of a transformers model, for use in a `with`; stored at its end.

        Each sequence is a capture, its id in `ids`. `tokens` is the tokenizer, or a function from
        a list of ids to as many texts: they label what is shown. `label` is what to find it by.
        Raises `InvalidInputError` where attention is computed by `sdpa` or the like, which give
        none, and `NotFoundError` for a session that is not there.
        """
        from arc_halo.inference.attention import AttentionCapture
        from arc_halo.inference.token_texts import token_texts

        return AttentionCapture(
            self._project.pool,
            module,
            layers=layers,
            heads=heads,
            dtype=dtype,
            keeping=self._keeping("attention_patterns", budget_bytes, ttl_seconds),
            token_texts=None if tokens is None else token_texts(tokens),
            label=label,
            session_id=None if session is None else self._session_id(session),
        )

    def attention(self, capture: str | UUID) -> Attention:
        """A capture of attention, by its id, the beginning of that (6 digits or more), or its
        label, of several the newest. Raises `NotFoundError`."""
        from arc_halo.inference import attention_captures

        return attention_captures.read(self._project.pool, capture)

    def attention_captures(
        self, *, label: str | None = None, model: str | None = None, limit: int | None = None
    ) -> Sequence[CaptureRow]:
        """The captures of attention that there are, the newest first.

        `model` is a registered name, name@version, or the beginning of a root of weights in hex.
        """
        from arc_halo.inference import attention_captures

        with self._project.connection() as conn:
            return attention_captures.listed(conn, label=label, model=model, limit=limit)

    def delete_attention(self, *captures: str | UUID, label: str | None = None) -> None:
        """Delete captures of attention, all or none: those named as for `attention`, and all that
        are called `label`. A name that is the label of several raises `InvalidInputError`."""
        from arc_halo.inference import attention_captures

        with self._project.connection() as conn:
            attention_captures.delete(conn, captures, label=label)

    def _keeping(self, cache: str, budget_bytes: int | None, ttl_seconds: float | None) -> Keeping:
        from arc_halo.inference.keeping import keeping

        with self._project.connection() as conn:
            return keeping(conn, cache, budget_bytes, ttl_seconds)

    def _session_id(self, session: GivenSession) -> UUID:
        from arc_halo.inference import reading

        with self._project.connection() as conn:
            return reading.session(conn, session).id
