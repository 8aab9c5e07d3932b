"""The plugin manager: registers, checks, indexes by name, and refuses clashes."""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Generic, Protocol, TypeVar

import pluggy

from arc_halo import hookspecs
from arc_halo._version import __version__
from arc_halo.config import redact
from arc_halo.errors import PluginConflictError, PluginError, UnknownPluginError
from arc_halo.hook_rules import check_module
from arc_halo.names import did_you_mean
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

ENTRY_POINT_GROUP = "arc_halo"

BUILTIN = (
    "arc_halo.bodies.object",
    "arc_halo.bodies.postgres",
    "arc_halo.codecs.delta",
    "arc_halo.codecs.planes",
    "arc_halo.codecs.raw",
    "arc_halo.codecs.zstd",
    "arc_halo.executors.dask",
    "arc_halo.executors.processes",
    "arc_halo.executors.threads",
    "arc_halo.formats.safetensors",
    "arc_halo.formats.torch_files",
    "arc_halo.runners.openai",
    "arc_halo.runners.python",
    "arc_halo.runners.recorded",
    "arc_halo.runners.transformers",
    "arc_halo.strategies.arcee_fusion",
    "arc_halo.strategies.breadcrumbs",
    "arc_halo.strategies.breadcrumbs_ties",
    "arc_halo.strategies.contrastive",
    "arc_halo.strategies.dare_linear",
    "arc_halo.strategies.dare_ties",
    "arc_halo.strategies.della",
    "arc_halo.strategies.della_linear",
    "arc_halo.strategies.dynamic",
    "arc_halo.strategies.iso_c",
    "arc_halo.strategies.karcher",
    "arc_halo.strategies.linear",
    "arc_halo.strategies.median",
    "arc_halo.strategies.model_stock",
    "arc_halo.strategies.multislerp",
    "arc_halo.strategies.nearswap",
    "arc_halo.strategies.nuslerp",
    "arc_halo.strategies.passthrough",
    "arc_halo.strategies.product_of_experts",
    "arc_halo.strategies.ram",
    "arc_halo.strategies.ramplus_tl",
    "arc_halo.strategies.rank_fusion",
    "arc_halo.strategies.sce",
    "arc_halo.strategies.self_consistency",
    "arc_halo.strategies.slerp",
    "arc_halo.strategies.stacking",
    "arc_halo.strategies.task_arithmetic",
    "arc_halo.strategies.ties",
    "arc_halo.strategies.tsv_m",
    "arc_halo.strategies.voting",
    "arc_halo.strategies.weighted_average",
    "arc_halo.strategies.wudi",
)


class Named(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int | None: ...
    @property
    def summary(self) -> str: ...


D = TypeVar("D", bound=Named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Who a descriptor comes from: `arc-halo 0.1.0`, `halo-midrange 1.2`, `plugins/midrange.py`."""

    name: str
    version: str
    file: str | None = None

    def __str__(self) -> str:
        return self.file or f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provided(Generic[D]):
    """A descriptor with its provider and the version under which its results are recorded."""

    item: D
    provider: Provider
    version: str


class PluginManager:
    """What the loaded plugins provide. Owned by a `Project`, never a global."""

    def __init__(self) -> None:
        self._pm = pluggy.PluginManager(hookspecs.PROJECT_NAME)
        self._pm.add_hookspecs(hookspecs)
        self._providers: dict[str, Provider] = {}
        self.files: Mapping[str, Path] = {}
        self.remarks: Mapping[str, str] = {}
        for module in BUILTIN:
            self._register(
                importlib.import_module(module), Provider(name="arc-halo", version=__version__)
            )

    @classmethod
    def load(
        cls,
        files: Mapping[str, Path] | None = None,
        *,
        remarks: Mapping[str, str] | None = None,
    ) -> PluginManager:
        """Built-ins, then installed packages, then the project's own files, by their labels.

        `remarks` say, by label, which files the project has otherwise than they are loaded.
        """
        manager = cls()
        manager.files = dict(files or {})
        manager.remarks = dict(remarks or {})
        manager._load_entry_points()
        for label, path in (files or {}).items():
            manager._load_file(label, path)
        return manager

    @cached_property
    def strategies(self) -> Mapping[str, Provided[FusionStrategy]]:
        return self._index(FusionStrategy, "arc_halo_fusion_strategies")

    @cached_property
    def codecs(self) -> Mapping[str, Provided[TensorCodec]]:
        return self._index(TensorCodec, "arc_halo_tensor_codecs")

    @cached_property
    def formats(self) -> Mapping[str, Provided[WeightFormat]]:
        return self._index(WeightFormat, "arc_halo_weight_formats")

    @cached_property
    def body_stores(self) -> Mapping[str, Provided[BodyStore]]:
        return self._index(BodyStore, "arc_halo_body_stores")

    @cached_property
    def executors(self) -> Mapping[str, Provided[WorkExecutor]]:
        return self._index(WorkExecutor, "arc_halo_executors")

    @cached_property
    def runners(self) -> Mapping[str, Provided[ModelRunner]]:
        return self._index(ModelRunner, "arc_halo_runners")

    @cached_property
    def predictors(self) -> Mapping[str, Provided[Predictor]]:
        return self._index(Predictor, "arc_halo_predictors")

    @property
    def providers(self) -> tuple[Provider, ...]:
        """Every provider once, built-ins first."""
        return tuple(dict.fromkeys(self._providers.values()))

    @cached_property
    def has_policies(self) -> bool:
        """Whether any plugin wants to see plans before or after they are applied."""
        hooks = (self._pm.hook.arc_halo_before_apply, self._pm.hook.arc_halo_after_apply)
        return any(hook.get_hookimpls() for hook in hooks)

    def refusals(self, plan: JsonObject) -> list[tuple[str, Provider]]:
        """What each `arc_halo_before_apply` says against a plan.

        Raises `PluginError` for one that fails: what cannot be asked has not agreed.
        """
        hook = "arc_halo_before_apply"
        found = []
        for impl, provider in self._impls(hook):
            for reason in _called(impl, provider, hook, _texts, plan=plan):
                if not isinstance(reason, str):
                    raise PluginError(f"{provider}: {hook} gave {reason!r}, which is no text")
                found.append((redact(reason), provider))
        return found

    def applied(self, plan: JsonObject, report: JsonObject) -> None:
        """Tell each `arc_halo_after_apply`; one that fails keeps no other from being told.

        Raises `PluginError` for the first that failed, once all are told.
        """
        hook = "arc_halo_after_apply"
        failed: list[PluginError] = []
        for impl, provider in self._impls(hook):
            try:
                _called(impl, provider, hook, _texts, plan=plan, report=report)
            except PluginError as exc:
                failed.append(exc)
        for error in failed[:1]:
            raise PluginError(
                f"revision {report['revision']} of {report['project']} is applied, but "
                f"{error.message}",
                hint="repair the plugin; the apply need not be done again",
            ) from error

    def strategy(self, name: str) -> Provided[FusionStrategy]:
        return _find(self.strategies, name, "fusion strategy")

    def codec(self, name: str) -> TensorCodec:
        return _find(self.codecs, name, "tensor codec").item

    def format(self, name: str) -> WeightFormat:
        return _find(self.formats, name, "weight format").item

    def body_store(self, name: str) -> BodyStore:
        return _find(self.body_stores, name, "body store").item

    def executor(self, name: str) -> WorkExecutor:
        return _find(self.executors, name, "executor").item

    def runner(self, name: str) -> Provided[ModelRunner]:
        return _find(self.runners, name, "runner")

    def runner_params(self) -> dict[str, JsonObject]:
        """The params schema of each runner, for the manifest's schema."""
        return {name: provided.item.params_schema for name, provided in self.runners.items()}

    def strategy_params(self) -> dict[str, JsonObject]:
        """The params schema of each strategy, for the manifest's schema."""
        return {name: provided.item.params_schema for name, provided in self.strategies.items()}

    def _register(self, module: ModuleType, provider: Provider) -> None:
        name = module.__name__
        self._providers[name] = provider
        try:
            self._pm.register(module, name)
        except (pluggy.PluginValidationError, ValueError) as exc:
            raise PluginError(f"{provider}: {exc}") from exc

    def _register_checked(self, module: ModuleType, provider: Provider) -> None:
        check_module(module, str(provider), file=provider.file is not None)
        self._register(module, provider)

    def _load_entry_points(self) -> None:
        for entry in sorted(
            importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name
        ):
            dist = entry.dist
            provider = Provider(
                name=dist.name if dist else entry.name, version=dist.version if dist else "unknown"
            )
            try:
                module = entry.load()
            except Exception as exc:
                raise PluginError(
                    f"the plugin {entry.name!r} of {provider} cannot be imported: {_words(exc)}",
                    hint=f"repair it, or uninstall {provider.name}",
                ) from exc
            if not isinstance(module, ModuleType):
                raise PluginError(f"the plugin {entry.name!r} of {provider} is not a module")
            self._register_checked(module, provider)

    def _load_file(self, label: str, path: Path) -> None:
        try:
            text = path.read_bytes()
        except OSError as exc:
            raise PluginError(f"{label}: {exc.strerror}", hint="see `plugins:`") from exc
        digest = hashlib.sha256(text).hexdigest()
        provider = Provider(name=path.stem, version=f"sha256:{digest[:16]}", file=label)
        name = f"arc_halo_plugin_{path.stem}_{digest[:16]}"
        spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        module.__file__ = str(path)
        # Where dataclasses and typing look a module up; the name is the text's own.
        sys.modules[name] = module
        try:
            # Compiled from the bytes that were hashed, so the version names the code that runs.
            exec(compile(text, str(path), "exec"), module.__dict__)
        except (Exception, SystemExit) as exc:
            del sys.modules[name]
            raise PluginError(
                f"{_place(exc, path, label)}: the plugin cannot be imported: {_words(exc)}",
                hint="run `python " + label + "` to see more",
            ) from exc
        self._register_checked(module, provider)

    def _index(self, kind: type[D], hook: str) -> Mapping[str, Provided[D]]:
        found: dict[str, Provided[D]] = {}
        for item, provider in self._items(hook):
            provided = _checked(item, kind, provider, hook)
            name = provided.item.name
            if name in found:
                raise PluginConflictError(
                    f"{name!r} of {hook} comes from {found[name].provider} and from {provider}",
                    hint="rename one of the two, or load only one",
                )
            found[name] = provided
        return MappingProxyType({name: found[name] for name in sorted(found)})

    def _items(self, hook: str) -> Iterator[tuple[Any, Provider]]:
        for impl, provider in self._impls(hook):
            for item in _called(impl, provider, hook, list):
                yield item, provider

    def _impls(self, hook: str) -> Iterator[tuple[pluggy.HookImpl, Provider]]:
        for impl in getattr(self._pm.hook, hook).get_hookimpls():
            yield impl, self._providers[impl.plugin_name]


def _texts(said: Any) -> list[Any]:
    """What a policy says: nothing, a text, or several; a `False` is none of them, and fails."""
    return [said] if isinstance(said, str) else list(() if said is None else said)


def _called(
    impl: pluggy.HookImpl,
    provider: Provider,
    hook: str,
    collect: Callable[[Any], list[Any]],
    **given: JsonObject,
) -> list[Any]:
    """What an implementation yields, of the arguments that it asks for a copy of its own."""
    arguments = [copy.deepcopy(given[name]) for name in impl.argnames]
    try:
        return collect(impl.function(*arguments))
    except PluginError as exc:
        raise PluginError(f"{provider}: {exc.message}", hint=exc.hint) from exc
    except (Exception, SystemExit) as exc:
        raise PluginError(f"{provider}: {hook} failed: {_words(exc)}") from exc


def _place(exc: BaseException, path: Path, label: str) -> str:
    """The plugin's file, and the line of it where the exception comes from, if one is known."""
    if isinstance(exc, SyntaxError) and exc.filename == str(path) and exc.lineno:
        return f"{label}:{exc.lineno}" + (f":{exc.offset}" if exc.offset else "")
    frames = traceback.extract_tb(exc.__traceback__)
    line = next((each.lineno for each in reversed(frames) if each.filename == str(path)), None)
    return f"{label}:{line}" if line else label


def _words(exc: BaseException) -> str:
    """What an exception says; of a mistake in Python's grammar, the text too."""
    if not isinstance(exc, SyntaxError):
        return redact(f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__)
    text = f": {exc.text.strip()}" if exc.text and exc.text.strip() else ""
    return redact(f"{type(exc).__name__}: {exc.msg}{text}")


def _checked(item: Any, kind: type[D], provider: Provider, hook: str) -> Provided[D]:
    if not isinstance(item, kind):
        raise PluginError(f"{provider}: {hook} gave {item!r}, not a {kind.__name__}")
    if item.version is None and provider.file is None:
        raise PluginError(
            f"{provider}: {item.name!r} has no version",
            hint="a package says when its results change: version=1",
        )
    version = provider.version if item.version is None else str(item.version)
    return Provided(item=item, provider=provider, version=version)


def _find(items: Mapping[str, Provided[D]], name: str, what: str) -> Provided[D]:
    if name in items:
        return items[name]
    guess = did_you_mean(name, items)
    raise UnknownPluginError(
        f"no loaded plugin provides the {what} {name!r}",
        hint=guess or "`arc-halo plugins` lists what is loaded; see `plugins:` in arc_halo.yaml",
    )
