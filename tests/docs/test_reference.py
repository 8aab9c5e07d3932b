"""The reference pages name what there is, all of it and nothing else; links lead somewhere."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import arc_halo
from arc_halo import api, errors, hookspecs, types
from arc_halo.cli.invocation import shared_options
from arc_halo.cli.main import arc_halo as program
from arc_halo.plugins import PluginManager
from arc_halo.store.models import ModelRecord
from arc_halo.tensors import digests

ROOT = Path(__file__).parents[2]
PAGES = sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")))
SCHEMA = json.loads((ROOT / "arc_halo" / "schemas" / "manifest.schema.json").read_text())

MANIFEST_SECTIONS = {
    "The project file": SCHEMA,
    "Models": SCHEMA["$defs"]["model"],
    "Weights": SCHEMA["$defs"]["weight_source"],
    "Strategies": SCHEMA["$defs"]["strategy"],
    "Reactors": SCHEMA["$defs"]["reactor"],
    "Members": SCHEMA["$defs"]["member"],
    "Adapters": SCHEMA["$defs"]["adapter"],
    "Tensor rules": SCHEMA["$defs"]["tensor_rule"],
    "Slices": SCHEMA["$defs"]["layer_slice"],
    "Tokenizer": SCHEMA["$defs"]["vocabulary"],
    "Interactions": SCHEMA["$defs"]["interaction"],
    "Produces": SCHEMA["$defs"]["product"],
    "Database": SCHEMA["$defs"]["database"],
    "Storage": SCHEMA["$defs"]["storage"],
    "Bodies": SCHEMA["$defs"]["bodies"],
    "Settings": SCHEMA["$defs"]["settings"],
    "Allowed": SCHEMA["$defs"]["settings"]["properties"]["allow"],
    "Runner": SCHEMA["$defs"]["runner"],
    "Run": SCHEMA["$defs"]["run"],
    "Training": SCHEMA["$defs"]["training"],
    "KV cache": SCHEMA["$defs"]["kv_cache"],
    "Captures": SCHEMA["$defs"]["capture_cache"],
    "Best metric": SCHEMA["$defs"]["best_metric"],
    "Retention": SCHEMA["$defs"]["retention"],
    "Logging": SCHEMA["$defs"]["logging"],
    "Gradient checkpointing": SCHEMA["$defs"]["gradient_checkpointing"],
}
NO_VALUE = "\N{EN DASH}"
RESOURCES = ("Models", "Strategies", "Reactors", "Training")

DESCRIPTORS = (
    "FusionStrategy", "FuseContext", "TensorCodec", "WeightFormat", "TensorInfo", "BodyStore",
    "WorkExecutor", "ModelRunner", "RunnerContext", "Predictor",
)  # fmt: skip


def test_every_command_has_its_section_and_no_section_is_of_another() -> None:
    commands = {usage for usage, _ in _commands()}
    assert {title for title in _sections("commands") if title.startswith("`")} == commands


def test_every_option_of_every_command_is_in_its_section_and_no_other_is() -> None:
    sections = _sections("commands")
    shared = {name for option in shared_options() for name in option.opts}
    assert set(_first_cells(sections["Shared options"])) == shared | {"-h", "--help"}
    for usage, command in _commands():
        own = {
            name
            for option in command.params
            if isinstance(option, click.Option)
            for name in (*option.opts, *option.secondary_opts)
        } - shared
        options = [cell for cell in _first_cells(sections[usage]) if cell.startswith("-")]
        assert set(options) == own, usage


def test_every_exit_code_of_an_error_is_explained() -> None:
    explained = _first_cells(_sections("commands")["Commands"], pattern=r"\d+")
    raised = {str(cls.exit_code) for cls in _error_classes()}
    assert raised <= set(explained)


@pytest.mark.parametrize("title", MANIFEST_SECTIONS)
def test_every_field_of_the_manifest_is_in_its_section_and_no_other_is(title: str) -> None:
    documented = _documented_fields(title)
    assert documented.keys() == MANIFEST_SECTIONS[title]["properties"].keys()


@pytest.mark.parametrize("title", MANIFEST_SECTIONS)
def test_defaults_and_required_fields_of_the_manifest_are_as_documented(title: str) -> None:
    schema = MANIFEST_SECTIONS[title]
    # The project file's own are behind an `if`, so that editors accept an included file too.
    required = schema.get("required") or schema.get("then", {}).get("required", ())
    for name, row in _documented_fields(title).items():
        field = _resolved(schema["properties"][name])
        expected = f"`{json.dumps(field['default'])}`" if "default" in field else NO_VALUE
        assert row[2] == ("**required**" if name in required else expected), name


@pytest.mark.parametrize("title", MANIFEST_SECTIONS)
def test_every_choice_of_the_manifest_is_documented(title: str) -> None:
    for name, row in _documented_fields(title).items():
        field = _resolved(MANIFEST_SECTIONS[title]["properties"][name])
        if "enum" in field:
            choices = [f"`{choice}`" for choice in field["enum"]]
            assert row[1] == ", ".join(choices), name


def test_every_field_that_can_be_ignored_is_documented() -> None:
    text = _sections("manifest")["Every resource"]
    for title in RESOURCES:
        for name in MANIFEST_SECTIONS[title]["properties"]["ignore"]["items"]["enum"]:
            assert f"`{name}`" in text, f"{title}: {name}"


def test_every_built_in_strategy_and_codec_has_its_place() -> None:
    sections, manager = _sections("manifest"), PluginManager()
    page = (ROOT / "docs" / "reference" / "strategies.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^### `(\w+)`$", page, re.MULTILINE)) == sorted(manager.strategies)
    for codec in manager.codecs:
        assert f"`{codec}`" in sections["Storage"]


def test_every_setting_is_on_the_page_of_settings() -> None:
    rows = _first_cells(_sections("settings")["In the manifest"])
    fields = [
        f"{section}.{name}"
        for section in ("storage", "settings")
        for name in SCHEMA["$defs"][section]["properties"]
    ]
    assert rows == fields


def test_every_environment_variable_is_on_the_page_of_settings_and_no_other_is() -> None:
    documented = _first_cells(_sections("settings")["Environment variables"])
    package = Path(arc_halo.__file__).parent
    used = {name for file in package.rglob("*.py") for name in _environment_variables(file)}
    tests = set(_environment_variables(ROOT / "tests" / "conftest.py"))
    # db psql sets PGPASSWORD for psql, from the address; libpq reads it by itself.
    ours = (used - {"PGPASSWORD"}) | {name for name in tests if name.startswith("ARC_HALO_")}
    assert sorted(documented) == sorted(ours)


def test_every_error_code_is_explained_and_no_other_is() -> None:
    titles = [title for title in _sections("errors") if re.fullmatch(r"AH\d+", title)]
    assert titles == sorted(errors.CODES)
    for code in titles:
        assert len(_sections("errors")[code].split()) >= 10, code


def test_every_error_class_is_listed_with_its_exit_code_and_code() -> None:
    rows = {row[0].strip("`"): row[1:] for row in _rows(_sections("errors")["Errors"])}
    for cls in _error_classes():
        exit_code, code = rows.pop(cls.__name__)
        assert int(exit_code) == cls.exit_code, cls
        assert code == ("that of its first problem" if cls is errors.ManifestError else cls.code)
    assert list(rows) == ["class"]


def test_every_hook_is_explained_with_its_exact_arguments_and_no_other_is() -> None:
    hooks = {
        f"`{name}({', '.join(inspect.signature(function).parameters)})`"
        for name, function in vars(hookspecs).items()
        if name.startswith("arc_halo_")
    }
    assert {title for title in _sections("hooks") if title.startswith("`arc_halo_")} == hooks


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_every_field_of_a_descriptor_is_explained_with_its_default(name: str) -> None:
    rows = _rows(_sections("hooks")[name])[1:]
    fields = dataclasses.fields(getattr(types, name))
    assert [row[0] for row in rows] == [f"`{field.name}`" for field in fields]
    for row, field in zip(rows, fields, strict=True):
        if field.default is not dataclasses.MISSING:
            assert row[1] == (f"`{field.default}`" if field.default != "" else '`""`'), field.name
        elif field.default_factory is dataclasses.MISSING:
            assert row[1] == "required", field.name


@pytest.mark.parametrize("protocol", [types.WeightReader, types.ChunkBodies, types.RunningModel])
def test_every_member_of_what_a_plugin_opens_is_explained(protocol: type) -> None:
    cells = _first_cells(_sections("hooks")[protocol.__name__])
    members = [name for name in vars(protocol) if not name.startswith("_")]
    assert sorted(cell.partition("(")[0] for cell in cells) == sorted(members)


def test_every_public_method_is_in_the_python_reference_with_its_signature() -> None:
    text = (ROOT / "docs" / "reference" / "python.md").read_text()
    assert f"## `connect{_signature(api.connect)}`" in text
    for title, cls in (
        ("models", api.Models),
        ("tensors", api.Tensors),
        ("embeddings", api.Embeddings),
        ("reactors", api.Reactors),
        ("training", api.Training),
        ("inference", api.Inference),
    ):
        section = text.partition(f"## `halo.{title}`")[2].partition("\n## ")[0]
        methods = {
            f"`{name}{_signature(function)}`"
            for name, function in inspect.getmembers(cls, inspect.isfunction)
            if not name.startswith("_")
        }
        assert set(re.findall(r"^### (`.*`)$", section, re.MULTILINE)) == methods


def test_every_export_and_every_field_of_a_model_is_in_the_python_reference() -> None:
    text = (ROOT / "docs" / "reference" / "python.md").read_text()
    fields = {field.name for field in dataclasses.fields(ModelRecord)} - {"weight_set_id"}
    for name in (*arc_halo.__all__, *fields):
        assert f"`{name}`" in text, name


def test_the_definition_of_digests_is_that_of_the_code() -> None:
    assert digests.__doc__ is not None
    definition = digests.__doc__.partition("\n\n")[2].partition("\n\nSo equal")[0]
    assert definition.replace("\\\\0", "\\0") in (ROOT / "docs/reference/digests.md").read_text()


def test_the_architecture_page_draws_the_layers_that_are_enforced() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    contract = project.partition("\nlayers = [\n")[2].partition("]")[0]
    layers = [line.strip(' ",') for line in contract.splitlines() if line.strip()]
    drawn = _sections("../architecture")["Layers"].partition("```text\n")[2].partition("\n```")[0]
    assert [re.split(r"\s{2,}", line)[0] for line in drawn.splitlines()] == layers


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _without_code(page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in _anchors(file.read_text()), f"{page.name} links to {target}"


def _commands() -> Iterator[tuple[str, click.Command]]:
    """Each command by the title of its section: its path, and what stands behind it."""

    def below(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield f"`{path}{_arguments(command)}`", command
        if isinstance(command, click.Group):
            for name, inner in command.commands.items():
                yield from below(f"{path} {name}", inner)

    yield from below("arc-halo", program)


def _arguments(command: click.Command) -> str:
    arguments = (p for p in command.params if isinstance(p, click.Argument))
    words = ((p.name or "").upper() for p in arguments)
    required = {(p.name or "").upper() for p in command.params if p.required}
    return "".join(f" {word}" if word in required else f" [{word}]" for word in words)


def _error_classes() -> list[type[errors.ArcHaloError]]:
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.ArcHaloError)
    ]


def _resolved(field: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in field:
        return field
    target = SCHEMA["$defs"][field["$ref"].rpartition("/")[2]]
    return {**_resolved(target), **{k: v for k, v in field.items() if k != "$ref"}}


def _documented_fields(title: str) -> dict[str, list[str]]:
    """The rows of a section's first table by field; the fields of every resource are elsewhere."""
    sections = _sections("manifest")
    tables = [sections[title]] + [sections["Every resource"]] * (title in RESOURCES)
    rows = [row for text in tables for row in _first_table(text)[1:]]
    return {row[0].strip("`"): row for row in rows}


def _environment_variables(file: Path) -> Iterator[str]:
    """Names that code looks up in something called an environment."""
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Call(func=ast.Attribute(value=where, attr="get"), args=[name, *_]):
                pass
            case ast.Subscript(value=where, slice=name):
                pass
            case ast.Compare(left=name, ops=[ast.In() | ast.NotIn()], comparators=[where]):
                pass
            case _:
                continue
        if isinstance(name, ast.Constant) and ast.unparse(where).rpartition(".")[2] in (
            "environ",
            "environment",
        ):
            yield str(name.value)


def _signature(function: Any) -> str:
    """`(model, *, role='secondary')`: without annotations and without self."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name != "self"
    ]
    return str(inspect.Signature(parameters))


def _sections(page: str) -> dict[str, str]:
    """The text below each heading of a reference page, up to the next heading."""
    text = (ROOT / "docs" / "reference" / f"{page}.md").read_text()
    text = re.sub(r"(?m)^(```.*\n)((?:.*\n)*?)^```$", _hidden_headings, text)
    parts = re.split(r"(?m)^#{1,3} (.+)\n", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _hidden_headings(block: re.Match[str]) -> str:
    return block[1] + re.sub(r"(?m)^#", " #", block[2]) + "```"


def _rows(text: str) -> list[list[str]]:
    """The rows of all tables, headers too."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    cells = ([cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows)
    return [row for row in cells if set("".join(row)) - set("-")]


def _first_table(text: str) -> list[list[str]]:
    lines = text[text.index("\n|") + 1 :] if "\n|" in text else ""
    return _rows(re.split(r"(?m)^(?!\|)", lines, maxsplit=1)[0])


def _first_cells(text: str, *, pattern: str = r"`([^`]+)`") -> list[str]:
    """The marked words of first columns, options without what they take."""
    cells = (re.findall(pattern, row[0]) for row in _rows(text))
    words = (word for found in cells for word in found)
    return [word.split(" ")[0] if word.startswith("-") else word for word in words]


def _without_code(text: str) -> str:
    return re.sub(r"(?ms)^```.*?^```$|`[^`\n]*`", "", text)


def _anchors(text: str) -> set[str]:
    titles = re.findall(r"(?m)^#{1,6} (.+)$", re.sub(r"(?ms)^```.*?^```$", "", text))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", sorted(PluginManager().strategies))
def test_every_strategy_is_explained_with_its_params(name: str) -> None:
    page = (ROOT / "docs" / "reference" / "strategies.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^### `{name}`\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    strategy = PluginManager().strategies[name].item
    assert f"\n{strategy.numerics.capitalize()}; " in section
    assert re.findall(r"^\| `.*\|$", section, re.MULTILINE) == _params_rows(strategy.params_schema)


@pytest.mark.parametrize("name", sorted(PluginManager().runners))
def test_every_runner_is_explained_with_its_params(name: str) -> None:
    section = _sections("runners")[f"`{name}`"]
    runner = PluginManager().runners[name].item
    assert re.findall(r"^\| `.*\|$", section, re.MULTILINE) == _params_rows(runner.params_schema)


def _params_rows(schema: dict[str, Any]) -> list[str]:
    return [
        f"| `{param}` | {_default(each)} | {each['description']} |"
        for param, each in schema.get("properties", {}).items()
    ]


def _default(param: dict[str, Any]) -> str:
    return f"`{json.dumps(param['default'])}`" if "default" in param else "required"
