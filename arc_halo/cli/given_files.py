"""Files that stand for models on the command line: `--from-files MODEL=PATH`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from arc_halo.errors import UsageError

if TYPE_CHECKING:
    from contextlib import ExitStack

    from arc_halo.fusion.files import OpenModel
    from arc_halo.manifest.documents import ReactorSpec
    from arc_halo.manifest.tokenizers import Tokenizer
    from arc_halo.plugins import PluginManager

TOKENIZER = "tokenizer.json"


def given_paths(needed: Sequence[str], files: Sequence[str]) -> dict[str, Path]:
    """The path of every model that is needed; versions and aliases may be left out.

    Raises `UsageError` for a model without a file, and for a file of no such model.
    """
    given: dict[str, Path] = {}
    for text in files:
        name, separator, path = text.partition("=")
        if not (name and separator and path):
            raise UsageError(f"{text!r} is not MODEL=PATH", hint="write base=base.safetensors")
        given[name] = Path(path)
    found = {name: _find(given, name) for name in needed}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise UsageError(
            f"no file is given for {', '.join(missing)}",
            hint=f"add `--from-files {missing[0]}=PATH`",
        )
    unknown = [name for name in given if all(_bare(name) != _bare(each) for each in needed)]
    if unknown:
        raise UsageError(
            f"the recipe names no model {unknown[0]!r}", hint=f"it names {', '.join(needed)}"
        )
    return {name: path for name, path in found.items() if path is not None}


def open_given(stack: ExitStack, plugins: PluginManager, name: str, path: Path) -> OpenModel:
    """The model's files, open until the stack is closed."""
    from arc_halo.formats.finding import find_format
    from arc_halo.fusion.files import OpenModel

    formats = {each: provided.item for each, provided in plugins.formats.items()}
    reader = stack.enter_context(find_format(path, formats).open(path))
    return OpenModel(name=name, reader=reader)


def given_tokenizers(spec: ReactorSpec, paths: Mapping[str, Path]) -> dict[str, Tokenizer]:
    """Those beside the weights, where the reactor says what is to become of them."""
    from arc_halo.manifest.tokenizers import read_tokenizer

    names = spec.inputs if spec.tokenizer else ()
    beside = {n: (p if p.is_dir() else p.parent) / TOKENIZER for n, p in paths.items()}
    return {name: read_tokenizer(beside[name], str(beside[name])) for name in names}


def _find(given: Mapping[str, Path], name: str) -> Path | None:
    return given.get(name) or next((p for n, p in given.items() if n == _bare(name)), None)


def _bare(name: str) -> str:
    return name.partition("@")[0].partition(":")[0]
