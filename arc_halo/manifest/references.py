"""References to models: `name`, `name@version` and `name:alias` become full names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from arc_halo.manifest.collect import Names
from arc_halo.manifest.documents import RegisteredModel
from arc_halo.manifest.problems import Found, Pointer, Problems
from arc_halo.names import ModelReference, did_you_mean, parse_reference

Registered = Mapping[tuple[str, str], RegisteredModel]


@dataclass(slots=True, kw_only=True)
class References:
    """Follows references; `used` gathers the registered models that were met by alias."""

    names: Names
    problems: Problems
    registered: Registered | None
    used: dict[str, RegisteredModel] = field(default_factory=dict)

    def find(self, found: Found, pointer: Pointer, text: str) -> str | None:
        reference = parse_reference(text)
        if reference is None:
            self.problems.add(found, pointer, "AH006", f"{text!r} is not a model reference", None)
            return None
        if reference.alias is not None:
            return self._by_alias(found, pointer, reference)
        if reference.version is not None:
            if str(reference) in self.names.models:
                return str(reference)
        elif len(versions := self.names.versions.get(reference.name, [])) == 1:
            return f"{reference.name}@{versions[0]}"
        elif versions:
            message = f"{text!r} could be version {' or '.join(sorted(versions))}"
            hint = f"write {reference.name}@{max(versions)}"
            self.problems.add(found, pointer, "AH022", message, hint)
            return None
        message = f"{'.'.join(map(str, found.pointer))} refers to the model {text!r}, "
        renamed = self._renamed(reference)
        guess = renamed or did_you_mean(text, [*self.names.versions, *self.names.models])
        self.problems.add(found, pointer, "AH020", message + "which is not declared", guess)
        return None

    def _renamed(self, reference: ModelReference) -> str | None:
        """A hint at the model that used to be called so."""
        for name, model in self.names.models.items():
            if model.data.get("renamed_from") in (reference.name, str(reference)):
                return f"it is called {name} now"
        return None

    def _by_alias(self, found: Found, pointer: Pointer, reference: ModelReference) -> str | None:
        assert reference.alias is not None
        pair = (reference.name, reference.alias)
        if pair in self.names.aliases:
            return self.names.aliases[pair]
        if self.registered is None:
            model = RegisteredModel(
                name=reference.name, version="0", type="other", architecture={}, root=None
            )
        elif pair in self.registered:
            model = self.registered[pair]
        else:
            message = f"no model has the alias {reference}, neither declared nor in the database"
            self.problems.add(found, pointer, "AH022", message, None)
            return None
        if model.full_name not in self.names.models:
            self.used[model.full_name] = model
        return model.full_name
