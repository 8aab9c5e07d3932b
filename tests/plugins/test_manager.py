"""The rules a plugin keeps, and errors that name who broke one, and in which file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from arc_halo import __version__
from arc_halo.errors import PluginConflictError, PluginError, UnknownPluginError
from arc_halo.plugins import PluginManager

HEAD = "from arc_halo import FusionStrategy, TensorCodec, WeightFormat, hookimpl\n"
STRATEGY = """
@hookimpl
def arc_halo_fusion_strategies():
    yield FusionStrategy(name={name!r}, summary="first", fuse_weights=fuse, version={version})

def fuse(tensors, context):
    return tensors[0]
"""


def strategy(name: str = "mine", version: object = None) -> str:
    return HEAD + STRATEGY.format(name=name, version=version)


def load(directory: Path, *texts: str) -> PluginManager:
    """Loads each text as a file of its own: plugins/p0.py, plugins/p1.py."""
    files = {}
    for index, text in enumerate(texts):
        label = f"plugins/p{index}.py"
        path = directory / label
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        files[label] = path
    return PluginManager.load(files)


def use(manager: PluginManager) -> None:
    """Asks for everything that plugins provide, as a project does."""
    for provided in (manager.strategies, manager.codecs, manager.formats):
        assert provided


def test_what_is_built_in_comes_through_the_same_hooks() -> None:
    manager = PluginManager()
    assert len([s for s in manager.strategies.values() if s.item.fuse_weights]) == 24
    assert {"linear", "slerp", "ties"} <= manager.strategies.keys()
    assert list(manager.codecs) == ["delta", "planes", "raw", "zstd"]
    assert list(manager.formats) == ["safetensors", "torch"]
    assert list(manager.body_stores) == ["object", "postgres"]
    assert [str(provider) for provider in manager.providers] == [f"arc-halo {__version__}"]
    assert all(p.version == str(p.item.version) for p in manager.strategies.values())


def test_managers_share_nothing(tmp_path: Path) -> None:
    assert "mine" in load(tmp_path, strategy()).strategies
    assert "mine" not in PluginManager().strategies


def test_a_file_without_a_version_is_versioned_by_its_text(tmp_path: Path) -> None:
    text = strategy()
    provided = load(tmp_path, text).strategy("mine")
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert provided.version == f"sha256:{digest[:16]}"
    assert str(provided.provider) == "plugins/p0.py"
    assert load(tmp_path, text + "\n").strategy("mine").version != provided.version


def test_a_file_may_give_a_version(tmp_path: Path) -> None:
    assert load(tmp_path, strategy(version=3)).strategy("mine").version == "3"


def test_a_misspelt_hook_is_an_error_that_names_hook_and_file(tmp_path: Path) -> None:
    text = strategy().replace("arc_halo_fusion_strategies", "arc_halo_fusion_strategy")
    with pytest.raises(PluginError, match="arc_halo_fusion_strategy") as caught:
        use(load(tmp_path, text))
    assert "plugins/p0.py" in caught.value.message
    assert caught.value.error_code == "AH030"


def test_a_hook_with_parameters_it_is_not_given_is_an_error(tmp_path: Path) -> None:
    text = strategy().replace("strategies():", "strategies(config):")
    with pytest.raises(PluginError, match=r"plugins/p0\.py.*config"):
        use(load(tmp_path, text))


POLICY = (
    "from arc_halo import hookimpl\n\n@hookimpl\ndef arc_halo_before_apply(plan):\n    yield 'no'\n"
)

NEVER_ASKED = {
    "no mark": (
        POLICY.replace("@hookimpl", ""),
        "p0.py:4: arc_halo_before_apply is without `@hookimpl`, so that it would never be called",
        "write `@hookimpl` above it",
    ),
    "no function": (
        "from functools import partial\narc_halo_before_apply = partial(print)\n",
        "p0.py: arc_halo_before_apply is without `@hookimpl`",
        "write `@hookimpl` above it",
    ),
    "no mark, misspelt": (
        POLICY.replace("@hookimpl", "").replace("apply", "aply"),
        "p0.py:4: arc_halo_before_aply is no hook",
        "did you mean 'arc_halo_before_apply'?; `arc-halo plugins --hooks` lists the hooks; a hook",
    ),
    "misspelt": (
        POLICY.replace("apply", "aply"),
        "p0.py:3: arc_halo_before_aply is no hook",
        "did you mean 'arc_halo_before_apply'?",
    ),
    "another argument": (
        POLICY.replace("(plan)", "(plan, changes)"),
        "p0.py:3: arc_halo_before_apply asks for 'changes', which it is not given",
        "write `def arc_halo_before_apply(plan)`, or fewer of them",
    ),
    "by keyword alone": (
        POLICY.replace("(plan)", "(*, plan)"),
        "p0.py:3: arc_halo_before_apply asks for '*, plan', which it is not given",
        "write `def arc_halo_before_apply(plan)`",
    ),
    "no hook": ("x = 1\n", "p0.py: this implements no hook", "take it out of `plugins:`"),
}


@pytest.mark.parametrize("what", NEVER_ASKED)
def test_a_policy_that_would_never_be_asked_is_an_error_in_one_line(
    tmp_path: Path, what: str
) -> None:
    text, message, hint = NEVER_ASKED[what]
    with pytest.raises(PluginError) as caught:
        load(tmp_path, text)
    assert caught.value.error_code == "AH030"
    assert f"plugins/{message}" in caught.value.message
    assert "\n" not in caught.value.message
    assert hint in str(caught.value.hint)


def test_the_policy_that_the_documentation_begins_with_refuses(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "policies.md").read_text()
    policy = page.partition("```python file=keep_all.py\n")[2].partition("```")[0]
    deletion = {"address": "model/a@1", "change": {"actions": ["delete"]}}
    ((reason, _),) = load(tmp_path, policy).refusals({"resource_changes": [deletion]})
    assert reason == "model/a@1 would be deleted"


def test_what_is_marked_as_optional_or_named_by_its_mark_is_no_mistake(tmp_path: Path) -> None:
    optional = POLICY.replace("@hookimpl", "@hookimpl(optionalhook=True)").replace("apply", "dusk")
    named = POLICY.replace("@hookimpl", '@hookimpl(specname="arc_halo_before_apply")')
    manager = load(tmp_path, optional, named.replace("def arc_halo_before_apply", "def judge"))
    assert [reason for reason, _ in manager.refusals({})] == ["no"]


@pytest.mark.parametrize("other", ["linear", "mine"])
def test_a_name_that_two_claim_is_an_error_that_names_both(tmp_path: Path, other: str) -> None:
    manager = load(tmp_path, strategy("mine"), strategy(other))
    with pytest.raises(PluginConflictError) as caught:
        use(manager)
    first = f"arc-halo {__version__}" if other == "linear" else "plugins/p0.py"
    assert f"{other!r}" in caught.value.message
    assert first in caught.value.message
    assert "plugins/p1.py" in caught.value.message
    assert caught.value.error_code == "AH031"


@pytest.mark.parametrize(
    "text",
    [
        "@hookimpl\ndef arc_halo_fusion_strategies():\n    yield 'linear'\n",
        "@hookimpl\ndef arc_halo_tensor_codecs():\n    yield FusionStrategy(name='x', summary='s')",
        "@hookimpl\ndef arc_halo_weight_formats():\n    return [None]\n",
        "@hookimpl\ndef arc_halo_fusion_strategies():\n    pass\n",
        "@hookimpl\ndef arc_halo_fusion_strategies():\n    yield 1 / 0\n",
        "@hookimpl(wrapper=True)\ndef arc_halo_fusion_strategies():\n    return (yield)\n",
        # the schema and the function disagree
        (
            "def f(tensors, context, *, k): ...\n@hookimpl\ndef arc_halo_fusion_strategies():\n"
            "    yield FusionStrategy(name='x', summary='', fuse_weights=f)\n"
        ),
        # what is fitted takes other params than what is combined
        (
            "def f(outputs, labels, context, *, k): ...\n@hookimpl\n"
            "def arc_halo_fusion_strategies():\n"
            "    yield FusionStrategy(name='x', summary='', fit_outputs=f)\n"
        ),
    ],
    ids=["text", "other kind", "none", "no answer", "raises", "wrapper", "params", "fit"],
)
def test_what_breaks_a_rule_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(PluginError, match=r"plugins/p0\.py") as caught:
        use(load(tmp_path, HEAD + text))
    assert caught.value.error_code == "AH030"


@pytest.mark.parametrize(
    "text",
    ["import not_there\n", "def broken(:\n", "1 / 0\n", "raise SystemExit(3)\n", "\0"],
    ids=["import", "syntax", "raises", "exits", "nul"],
)
def test_a_file_that_cannot_be_imported_is_an_error_that_names_it(
    tmp_path: Path, text: str
) -> None:
    with pytest.raises(PluginError, match=r"plugins/p0\.py"):
        load(tmp_path, text)


def test_a_file_may_hold_dataclasses_and_postponed_annotations(tmp_path: Path) -> None:
    text = (
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        + strategy()
        + "\n@dataclass\nclass Settings:\n    size: int = 1\n    name: ClassVar[str] = ''\n"
    )
    assert load(tmp_path, text).strategy("mine").item.name == "mine"


def test_a_file_named_twice_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(strategy())
    with pytest.raises(PluginError, match=r"p\.py"):
        use(PluginManager.load({"p.py": tmp_path / "p.py", "./p.py": tmp_path / "p.py"}))


@pytest.mark.parametrize("kind", ["strategy", "codec", "format"])
def test_an_unknown_name_is_an_error_with_a_guess(kind: str) -> None:
    written = {"strategy": "liner", "codec": "plane", "format": "safetensor"}[kind]
    meant = {"strategy": "linear", "codec": "planes", "format": "safetensors"}[kind]
    with pytest.raises(UnknownPluginError, match=repr(written)) as caught:
        getattr(PluginManager(), kind)(written)
    assert (caught.value.error_code, caught.value.hint) == ("AH032", f"did you mean '{meant}'?")


# Installed packages


def install(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    name: str = "halo-extra",
    target: str = "",
) -> None:
    """Puts a package with an entry point onto sys.path, as an installer would."""
    module = name.replace("-", "_") + "_" + hashlib.sha256(str(directory).encode()).hexdigest()[:8]
    info = directory / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[arc_halo]\n{name} = {target or module}\n")
    (directory / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(str(directory))


def test_an_installed_package_provides_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, strategy(version=4))
    manager = PluginManager.load()
    provided = manager.strategy("mine")
    assert (str(provided.provider), provided.version) == ("halo-extra 1.2", "4")
    assert "halo-extra 1.2" in [str(provider) for provider in manager.providers]


def test_a_package_whose_policy_has_no_mark_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, POLICY.replace("@hookimpl", ""))
    with pytest.raises(PluginError, match=r"halo-extra 1\.2: arc_halo_before_apply is without"):
        PluginManager.load()


def test_a_package_may_call_its_own_functions_as_it_likes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "from functools import partial\nfrom pluggy import HookimplMarker\n"
        "arc_halo_hookimpl = HookimplMarker('arc_halo')\narc_halo_helper = partial(print)\n"
        "def arc_halo_version_tuple():\n    return (1, 2)\n"
        "def arc_halo_before_aply(plan):\n    pass\n"
    )
    install(tmp_path, monkeypatch, strategy(version=4) + text)
    assert PluginManager.load().strategy("mine")


def test_a_package_has_to_give_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, strategy())
    with pytest.raises(PluginError, match=r"halo-extra 1\.2: 'mine' has no version"):
        use(PluginManager.load())


def test_a_package_and_a_file_cannot_claim_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, strategy(version=1))
    with pytest.raises(PluginConflictError, match=r"halo-extra 1\.2 and from plugins/p0\.py"):
        use(load(tmp_path, strategy()))


@pytest.mark.parametrize(
    ("text", "target"),
    [("1 / 0\n", ""), ("", "not_there_at_all"), ("", "math:pi")],
    ids=["raises", "absent", "no module"],
)
def test_a_broken_package_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, target: str
) -> None:
    install(tmp_path, monkeypatch, text, target=target)
    with pytest.raises(PluginError, match=r"halo-extra"):
        PluginManager.load()


PLACES = {
    "syntax": ("x = 1\ndef broken(:\n", "p0.py:2:12", "SyntaxError: invalid syntax: def broken(:"),
    "indent": ("if True:\nx = 1\n", "p0.py:2:1", "IndentationError: expected an indented block"),
    "raises": ("\n\nimport not_there\n", "p0.py:3:", "ModuleNotFoundError: No module named 'not_"),
    "deeper": ("def f():\n    return {}['x']\n\nf()\n", "p0.py:2:", "KeyError: 'x'"),
    "elsewhere": ("import json\njson.loads('{')\n", "p0.py:2:", "JSONDecodeError: Expecting"),
    "silent": ("raise SystemExit\n", "p0.py:1:", "SystemExit"),
}


@pytest.mark.parametrize("what", PLACES)
def test_where_in_a_file_it_fails_is_told(tmp_path: Path, what: str) -> None:
    text, place, words = PLACES[what]
    with pytest.raises(PluginError) as caught:
        load(tmp_path, text)
    assert f"plugins/{place}" in caught.value.message
    assert words in caught.value.message
