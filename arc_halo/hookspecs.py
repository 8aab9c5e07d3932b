"""Every hook a plugin may implement, with an example of each."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from arc_halo.types import (
    BodyStore,
    FusionStrategy,
    JsonObject,
    ModelRunner,
    Predictor,
    TensorCodec,
    WeightFormat,
    WorkExecutor,
)

PROJECT_NAME = "arc_halo"

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@hookspec
def arc_halo_fusion_strategies() -> Iterable[FusionStrategy]:
    """Yield ways to fuse models.

    Example:

        @hookimpl
        def arc_halo_fusion_strategies():
            yield FusionStrategy(
                name="midrange", version=1, summary="between extremes", fuse_weights=midrange
            )

        def midrange(tensors, context):
            return (np.min(tensors, axis=0) + np.max(tensors, axis=0)) / 2
    """
    raise NotImplementedError


@hookspec
def arc_halo_tensor_codecs() -> Iterable[TensorCodec]:
    """Yield lossless codecs for the chunks of tensors.

    Example:

        @hookimpl
        def arc_halo_tensor_codecs():
            yield TensorCodec(
                name="zlib", version=1, summary="zlib, level 6", encode=encode, decode=decode
            )

        def encode(raw, *, dtype):
            return zlib.compress(raw)

        def decode(body, out):
            try:
                out[:] = zlib.decompress(body, bufsize=len(out))
            except (zlib.error, ValueError) as exc:
                raise CodecError(f"zlib: {exc}") from exc
    """
    raise NotImplementedError


@hookspec
def arc_halo_weight_formats() -> Iterable[WeightFormat]:
    """Yield file formats of weights.

    Example:

        @hookimpl
        def arc_halo_weight_formats():
            yield WeightFormat(
                name="npz", version=1, summary="numpy archives", suffixes=(".npz",), open=open_npz
            )
    """
    raise NotImplementedError


@hookspec
def arc_halo_body_stores() -> Iterable[BodyStore]:
    """Yield places for the bodies of chunks.

    Example:

        @hookimpl
        def arc_halo_body_stores():
            yield BodyStore(
                name="shelf", version=1, summary="files of a directory", open=open_shelf
            )
    """
    raise NotImplementedError


@hookspec
def arc_halo_executors() -> Iterable[WorkExecutor]:
    """Yield places where the workers of merges run.

    Example:

        @hookimpl
        def arc_halo_executors():
            yield WorkExecutor(
                name="loky", version=1, summary="processes that are kept", open=open_loky
            )

        @contextmanager
        def open_loky(address, workers):
            yield loky.get_reusable_executor(workers)
    """
    raise NotImplementedError


@hookspec
def arc_halo_runners() -> Iterable[ModelRunner]:
    """Yield ways to have models answer.

    Example:

        @hookimpl
        def arc_halo_runners():
            yield ModelRunner(name="parrot", version=1, summary="says it again", open=open_parrot)

        @contextmanager
        def open_parrot(context):
            yield Parrot()

        class Parrot:
            def answer(self, inputs):
                return Outputs(texts=tuple(inputs))
    """
    raise NotImplementedError


@hookspec
def arc_halo_predictors() -> Iterable[Predictor]:
    """Yield functions that models with `runner: {uses: python}` answer by.

    Example:

        @hookimpl
        def arc_halo_predictors():
            yield Predictor(name="coin", version=1, summary="heads or tails", predict=toss)

        def toss(inputs):
            return Outputs(scores=np.full((len(inputs), 2), 0.5), classes=("heads", "tails"))
    """
    raise NotImplementedError


@hookspec
def arc_halo_before_apply(plan: JsonObject) -> Iterable[str] | None:
    """Say why a plan must not be applied, one text a reason; with none it may be.

    `plan` is what `arc-halo plan --output json` prints, a copy. It is asked when a plan is made, so
    that its reasons are shown, and again when it is applied.

    Example:

        @hookimpl
        def arc_halo_before_apply(plan):
            for change in plan["resource_changes"]:
                if "delete" in change["change"]["actions"]:
                    yield f"{change['address']} would be deleted"
    """
    raise NotImplementedError


@hookspec
def arc_halo_after_apply(plan: JsonObject, report: JsonObject) -> None:
    """Hear of an apply that is committed; an implementation may ask for one of the two.

    `report` is what `arc-halo apply --output json` prints. An exception is told, and undoes
    nothing.

    Example:

        @hookimpl
        def arc_halo_after_apply(report):
            print(f"revision {report['revision']} of {report['project']}")
    """
    raise NotImplementedError
