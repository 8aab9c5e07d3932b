"""The schema: what is accepted, how each refusal is told, and that both validators agree."""

import copy
import json
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.validators import extend

from arc_halo.config import parse_size
from arc_halo.errors import PluginError
from arc_halo.manifest.accept import acceptor, is_portable
from arc_halo.manifest.keywords import Validator
from arc_halo.manifest.load import load_project, load_text
from arc_halo.manifest.schema import compose_schema, validate
from arc_halo.names import NAME, VERSION

STRATEGIES = {
    "linear": {"type": "object", "additionalProperties": False, "properties": {}},
    "ties": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "density": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "majority": {"type": "string", "enum": ["total", "frequency"]},
        },
    },
    "needy": {
        "type": "object",
        "properties": {"k": {"type": "integer", "minimum": 1}},
        "required": ["k"],
    },
    # Keywords and references that draft-07 does not have, or reads differently.
    "modern": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:example:modern",
        "type": "object",
        "properties": {
            "pair": {"type": "array", "prefixItems": [{"type": "integer"}, {"$ref": "#/$defs/t"}]},
            "one": {"anyOf": [{"type": "null"}, {"type": "number"}]},
            "form": {"oneOf": [{"type": "object", "required": ["a"]}, {"type": "boolean"}]},
        },
        "unevaluatedProperties": False,
        "$defs": {"t": {"type": "string"}},
    },
}
CODECS = ["raw", "zstd", "planes"]
SCHEMA = compose_schema(STRATEGIES, CODECS)

FULL = """\
version: 1
project: halo-demo
database: {url: 'postgresql://ada@db.example.org/halo', password: {env: PW}}
include: [reactors/*.yaml]
plugins: [plugins/midrange.py]
storage: {codec: zstd, chunk_bytes: 256KiB}
settings: {memory: 64MiB, threads: 4, prune: true, max_deletes: 5, retain_revisions: 3}
models:
  base:
    version: 1.0.0
    type: transformer
    architecture: weights/base/config.json
    weights: {source: weights/base/model.safetensors, codec: planes}
  poet@1.2.0:
    architecture: {hidden_size: 64, anything: [1, {at: all}]}
    weights: weights/poet/model.safetensors
    aliases: [production]
    protected: true
    deletion: orphan
    renamed_from: bard@1.2.0
    ignore: [tags]
    tags: {team: poetry, tier: 1, live: true}
    description: a poet
strategies:
  calm-ties: {uses: ties, params: {density: 0.5}}
  modern: {uses: modern, params: {pair: [1, x], one: null, form: {a: 1}}}
reactors:
  story:
    type: merge
    strategy: calm-ties
    params: {density: 0.25}
    base: base
    members:
      - {model: poet@1.2.0, role: primary, weight: 0.6}
      - {model: 'poet:production', role: specialist, weight: 0.4, priority: 1}
    interactions:
      - {from: poet, to: base, kind: validates, weight: 0.8}
    produces: {model: story, version: 1.0.0, aliases: [latest]}
    config: {free: form}
  vote: {type: ensemble, strategy: needy, params: {k: 2}, members: [{model: base}]}
training:
  tuning:
    model: story
    total_epochs: 10
    total_steps: 5000
    config: {lr: 3.0e-4, anything: [1, {at: all}]}
    dataset: {name: tales, split: train}
    group: tuning
    notes: a first attempt
    metrics: {best: eval/loss, mode: max}
    retention: {keep_last: 3, keep_best: 1, keep_every: 1000}
    logging: {flush_seconds: 0.5, heartbeat_seconds: 5, system_seconds: 15, spool_bytes: 64MiB}
    gradient_checkpointing: {layers: {every: 2}, batch_size: 8, sequence_length: 512, dtype: BF16}
    protected: true
    tags: {team: poetry}
    description: the story, tuned
  short: {model: base, gradient_checkpointing: {layers: [0, 2], modules: blocks, attention: eager}}
inference:
  kv_cache:
    budget: 10GiB
    ttl: 7d
    block_tokens: 64
    codec: int8
    quota: 1GiB
    quotas: {acme: 2GiB}
    protected: true
    ignore: [budget]
  activation_cache: {budget: 2GiB, ttl: 30d, deletion: orphan}
  attention_patterns: {budget: 1GiB, description: maps, tags: {a: b}}
"""


def source_of(text, *, included=False):
    source = load_text(text, path=Path("/p/arc_halo.yaml"), label="arc_halo.yaml")
    return (
        source
        if not included
        else type(source)(
            path=source.path,
            label="part.yaml",
            text=source.text,
            data=source.data,
            digest=source.digest,
            included=True,
        )
    )


def problems_of(text, schema=SCHEMA, **options):
    return validate([source_of(text, **options)], schema)


def project(text):
    return f"version: 1\nproject: p\n{text}"


def told(text, **options):
    """Return the one problem of a text, as place, code, message and hint."""
    [problem] = problems_of(text, **options)
    place = problem.snippet[problem.column - 1 :][: problem.length]
    return place, problem.code, problem.message, problem.hint


# The schema itself


def test_the_schema_is_a_schema():
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator.check_schema(compose_schema({}, []))


def test_an_editor_accepts_a_project_file_and_an_included_one():
    editor = Draft202012Validator(SCHEMA)
    assert editor.is_valid(source_of(FULL).data)
    assert editor.is_valid({"models": {"a@1": {}}})
    assert not editor.is_valid({"version": 1, "settings": {}})


def fields(schema):
    if isinstance(schema, dict):
        yield from schema.get("properties", {}).items()
        for part in schema.values():
            yield from fields(part)
    if isinstance(schema, list):
        for part in schema:
            yield from fields(part)


def test_every_field_of_our_own_has_a_title_and_a_sentence():
    base = json.loads((files("arc_halo") / "schemas/manifest.schema.json").read_text("utf-8"))
    for name, field in fields(base):
        target = base["$defs"].get(field.get("$ref", "").removeprefix("#/$defs/"), {})
        description = field.get("description") or target.get("description")
        assert field.get("title") or target.get("title"), name
        assert description, name
        assert description.endswith("."), name


def test_the_schema_and_the_program_agree_on_names():
    definitions = SCHEMA["$defs"]
    assert definitions["name"]["pattern"] == f"^{NAME}$"
    assert definitions["version"]["pattern"] == f"^{VERSION}$"
    assert definitions["model_key"]["pattern"] == f"^{NAME}(@{VERSION})?$"
    assert definitions["model_reference"]["pattern"] == f"^{NAME}(@{VERSION}|:{NAME})?$"


def test_composing_leaves_the_plugins_schemas_alone():
    before = copy.deepcopy(STRATEGIES)
    compose_schema(STRATEGIES, CODECS)["$defs"]["params_0"]["title"] = "changed"
    assert before == STRATEGIES


# What is accepted


def test_a_full_project_has_no_problems():
    assert problems_of(FULL) == []


@pytest.mark.parametrize(
    "text", ["", "version: 1\n", "models: {}\n", "reactors: {}\nstrategies: {}\n"]
)
def test_an_included_file_may_hold_little(text):
    assert problems_of(text, included=True) == []


@pytest.mark.parametrize(
    "database",
    [
        "postgresql://ada@db.example.org:5432/halo?sslmode=verify-full",
        "postgres://db/halo",
        "postgresql:///halo?host=/run/postgresql",
        "host=db dbname=halo",
        "embedded",
    ],
)
def test_addresses_without_a_password_are_fine(database):
    assert problems_of(project(f"database: '{database}'\n")) == []
    assert problems_of(project(f"database: {{url: '{database}'}}\n")) == []


@pytest.mark.parametrize(
    "size", ["16384", "16KiB", "'16384'", "0.5MiB", "262144", "1 MiB", "500kB"]
)
def test_sizes_have_units_or_not(size):
    assert problems_of(project(f"storage: {{chunk_bytes: {size}}}\n")) == []


# What is refused


def test_a_message_is_as_the_design_has_it():
    [problem] = problems_of(project("models:\n  poet@1:\n    aliasses: [production]\n"))
    assert (problem.file, problem.line, problem.column) == ("arc_halo.yaml", 5, 5)
    assert (problem.code, problem.length) == ("AH003", 8)
    assert problem.message == "unknown field 'aliasses' in models.poet@1"
    assert problem.snippet == "    aliasses: [production]"
    assert problem.hint == "did you mean 'aliases'?"


@pytest.mark.parametrize(
    ("text", "place", "code", "message", "hint"),
    [
        ("modles: {}", "modles", "AH003", "unknown field 'modles'", "did you mean 'models'?"),
        (
            "strategies: {s: {uses: linear, params: {x: 1}}}",
            "x",
            "AH003",
            "unknown field 'x' in strategies.s.params",
            "remove it",
        ),
        (
            "settings: {threads: '8'}",
            "'8'",
            "AH004",
            "settings.threads: '8' is a string, an integer is needed",
            "remove the quotes",
        ),
        (
            "settings: {threads: 1_0}",
            "1_0",
            "AH004",
            "settings.threads: '1_0' is a string, an integer is needed",
            "write 10",
        ),
        (
            "settings: {threads: 1.5}",
            "1.5",
            "AH004",
            "settings.threads: 1.5 is a number, an integer is needed",
            "write an integer",
        ),
        (
            "settings: {threads: 4.0}",
            "4.0",
            "AH004",
            "settings.threads: 4.0 is a number, an integer is needed",
            "write 4",
        ),
        (
            "settings: {prune: yes}",
            "yes",
            "AH004",
            "settings.prune: 'yes' is a string, a boolean (true or false) is needed",
            "write true",
        ),
        (
            "models: {m: {version: 1.10}}",
            "1.10",
            "AH004",
            "models.m.version: 1.10 is a number, a string is needed",
            'put quotes around it: "1.10"',
        ),
        (
            "include: a.yaml",
            "a.yaml",
            "AH004",
            "include: 'a.yaml' is a string, a list is needed",
            "write a list: [a.yaml]",
        ),
        (
            "models:",
            "",
            "AH004",
            "models: nothing stands here, a mapping is needed",
            "write a value, or remove the line",
        ),
        (
            "inference: {kv_cache: {ttl: 0d}}",
            "0d",
            "AH006",
            "inference.kv_cache.ttl: '0d' is not a duration",
            "write a whole number from 1 and a unit, such as 12h or 7d (s, m, h, d, w)",
        ),
        (
            "inference: {kv_cache: {quotas: {acme: 2000TiB}}}",
            "2000TiB",
            "AH007",
            "inference.kv_cache.quotas.acme: 2000TiB is more than 1024TiB",
            "write a size from 1B to 1024TiB",
        ),
        (
            "inference: {activation_cache: {budget: 1KiB}}",
            "1KiB",
            "AH007",
            "inference.activation_cache.budget: 1KiB is less than 1MiB",
            "write a size from 1MiB to 1024TiB",
        ),
        (
            "inference: {kv_cach: {}}",
            "kv_cach",
            "AH003",
            "unknown field 'kv_cach' in inference",
            "did you mean 'kv_cache'?",
        ),
        (
            "inference: {kv_cache: {codec: plane}}",
            "plane",
            "AH032",
            "inference.kv_cache.codec: 'plane' is not a codec",
            "did you mean 'planes'?",
        ),
        (
            "training: {t: {model: m, gradient_checkpointing: {layers: most}}}",
            "most",
            "AH006",
            "training.t.gradient_checkpointing.layers: 'most' is not all or none",
            "write all, none, {every: 2} or a list of layers",
        ),
        (
            "training: {t: {model: m, gradient_checkpointing: {layers: 3}}}",
            "3",
            "AH004",
            "training.t.gradient_checkpointing.layers: "  # noqa: ISC004  one message
            "3 is a number, a string or a mapping or a list is needed",
            "write all, none, {every: 2} or a list of layers",
        ),
        (
            "training: {t: {model: m, gradient_checkpointing: {layers: [0, 0]}}}",
            "0",
            "AH006",
            "training.t.gradient_checkpointing.layers[1]: 0 stands twice in the list",
            "remove one of them",
        ),
        (
            "training: {t: {model: m, gradient_checkpointing: {dtype: bfloat16}}}",
            "bfloat16",
            "AH006",
            "training.t.gradient_checkpointing.dtype: 'bfloat16' is not allowed",
            "write BF16",
        ),
        (
            "training: {t: {model: m, logging: {spool_bytes: 1KiB}}}",
            "1KiB",
            "AH007",
            "training.t.logging.spool_bytes: 1KiB is less than 64KiB",
            "write a size from 64KiB to 1TiB",
        ),
        (
            "training: {t: {model: m, metrics: {best: eval/}}}",
            "eval/",
            "AH006",
            "training.t.metrics.best: 'eval/' is not a metric",
            "write SCOPE/KEY, such as eval/loss",
        ),
        (
            "training: {t: {model: m, retention: {keep_last: 0}}}",
            "0",
            "AH007",
            "training.t.retention.keep_last: 0 is less than the minimum of 1",
            "write at least 1",
        ),
        (
            "training: {t: {epochs: 3, model: m}}",
            "epochs",
            "AH003",
            "unknown field 'epochs' in training.t",
            "did you mean 'total_epochs'?",
        ),
        (
            "training: {t: {config: {}}}",
            "t",
            "AH005",
            "training.t: the field 'model' is missing",
            "add model:",
        ),
        (
            "models: {m@1: {weights: [a]}}",
            "[a]",
            "AH004",
            "models.m@1.weights: a list stands here, a string or a mapping is needed",
            "write a string or a mapping",
        ),
        (
            "models: {m: {}}",
            "m",
            "AH005",
            "models.m: the field 'version' is missing",
            "add it (version: 1.0.0), or write it into the name: NAME@1.0.0",
        ),
        (
            "strategies: {s: {uses: needy}}",
            "s",
            "AH005",
            "strategies.s: the field 'params' is missing",
            "add params:",
        ),
        (
            "strategies: {s: {uses: needy, params: {}}}",
            "params",
            "AH005",
            "strategies.s.params: the field 'k' is missing",
            "add k:",
        ),
        (
            "models: {m@1: {type: tranformer}}",
            "tranformer",
            "AH006",
            "models.m@1.type: 'tranformer' is not allowed",
            "did you mean 'transformer'?",
        ),
        (
            "models: {m@1: {deletion: burn}}",
            "burn",
            "AH006",
            "models.m@1.deletion: 'burn' is not allowed",
            "allowed are delete, orphan",
        ),
        (
            "models: {M@1: {}}",
            "M@1",
            "AH006",
            "models: 'M@1' is not a model's name",
            "write name or name@version: lower-case letters, digits, '.', '-' and '_'",
        ),
        (
            "models: {m@1: {aliases: [a, b, a]}}",
            "a",
            "AH006",
            "models.m@1.aliases[2]: 'a' stands twice in the list",
            "remove one of them",
        ),
        (
            "strategies: {s: {uses: lineer}}",
            "lineer",
            "AH032",
            "strategies.s.uses: 'lineer' is not a strategy",
            "did you mean 'linear'?",
        ),
        (
            "storage: {codec: lz4}",
            "lz4",
            "AH032",
            "storage.codec: 'lz4' is not a codec",
            "known are auto, planes, raw, zstd",
        ),
        (
            "settings: {threads: 65}",
            "65",
            "AH007",
            "settings.threads: 65 is greater than the maximum of 64",
            "write at most 64",
        ),
        (
            "strategies: {s: {uses: ties, params: {density: 0.0}}}",
            "0.0",
            "AH007",
            "strategies.s.params.density: 0.0 is not greater than 0",
            "write more than 0",
        ),
        (
            "include: ['']",
            "''",
            "AH007",
            "include[0]: this is empty; it takes at least 1 character",
            "write at least 1 character",
        ),
        (
            "storage: {chunk_bytes: 2MiB}",
            "2MiB",
            "AH007",
            "storage.chunk_bytes: 2MiB is more than 1MiB",
            "write a size from 16KiB to 1MiB",
        ),
        (
            "storage: {chunk_bytes: 1000}",
            "1000",
            "AH007",
            "storage.chunk_bytes: 1000 is less than 16KiB",
            "write a size from 16KiB to 1MiB",
        ),
        (
            "settings: {memory: much}",
            "much",
            "AH006",
            "settings.memory: 'much' is not a size",
            "write a number and a unit, such as 256MiB",
        ),
        (
            "strategies: {s: {uses: modern, params: {one: x}}}",
            "x",
            "AH004",
            "strategies.s.params.one: 'x' is a string, null or a number is needed",
            "write null or a number",
        ),
        (
            "strategies: {s: {uses: modern, params: {form: {b: 1}}}}",
            "form",
            "AH005",
            "strategies.s.params.form: the field 'a' is missing",
            "add a:",
        ),
        (
            "strategies: {s: {uses: modern, params: {pair: [1, 2]}}}",
            "2",
            "AH004",
            "strategies.s.params.pair[1]: 2 is a number, a string is needed",
            'put quotes around it: "2"',
        ),
    ],
)
def test_each_refusal_says_what_where_and_what_to_do(text, place, code, message, hint):
    assert told(project(text + "\n")) == (place, code, message, hint)


def test_inline_params_of_a_reactor_are_those_of_the_strategy_it_names():
    reactor = "reactors: {r: {type: merge, strategy: %s, params: %s, members: [{model: m}]}}\n"
    place, code, message, _ = told(project(reactor % ("ties", "{densty: 1}")))
    assert (place, code) == ("densty", "AH003")
    assert message == "unknown field 'densty' in reactors.r.params"
    assert problems_of(project(reactor % ("declared", "{densty: 1}"))) == []


def test_a_project_file_needs_a_version_and_a_name():
    problems = problems_of("models: {}\n")
    assert [(p.code, p.message, p.line, p.column) for p in problems] == [
        ("AH005", "the field 'version' is missing", 1, 1),
        ("AH005", "the field 'project' is missing", 1, 1),
    ]


def test_fields_of_the_project_file_are_refused_elsewhere():
    place, code, message, hint = told("settings: {}\n", included=True)
    assert (place, code) == ("settings", "AH003")
    assert message == "the field 'settings' belongs in the project file"
    assert hint == "move it to arc_halo.yaml"


def test_only_true_one_is_the_version():
    assert told("version: true\nproject: p\n")[1] == "AH004"
    assert told("version: 2\nproject: p\n")[1:3] == ("AH006", "version: 2 is not allowed")


def test_a_name_may_not_end_in_a_line_break():
    [problem] = problems_of(project('models: {"m@1\\n": {}}\n'))
    assert problem.code == "AH006"
    assert problem.message == "models: 'm@1\\n' is not a model's name"


@pytest.mark.parametrize(
    "text",
    [
        "database: 'postgresql://ada:hunter2@db/halo'",
        "database: 'postgresql://ada:hun/hunter2@x@db/halo'",
        "database: {url: 'postgresql://db/halo?password=hunter2'}",
        "database: host=db password=hunter2",
        "database: {url: 'postgresql://db/halo', password: hunter2}",
        "database: {url: 'postgresql://db/halo', password: {env: hunter2!}}",
        "database: {url: 'postgresql://db/halo', password: {env: NAME, value: hunter2}}",
        "database: {url: 'postgresql://db/halo', pasword: hunter2, foo: 1}",
        "database:\n  url: postgresql://db/halo\n  password:\n    hunter2",
        "database: [hunter2]",
        "database: hunter2",
    ],
)
def test_a_password_is_refused_and_never_repeated(text):
    problems = problems_of(project(text + "\n"))
    assert problems
    assert "hunter" not in repr(problems)


@pytest.mark.parametrize(
    "url", ["s3://id:hunter2@bucket", "s3://id:hun/ter2@bucket", "s3://b/p?secret=hunter2"]
)
def test_the_place_of_bodies_holds_no_secret(url):
    (problem,) = problems_of(project(f"storage: {{bodies: {{store: postgres, url: '{url}'}}}}\n"))
    assert problem.code == "AH006"
    assert "it holds more than a place" in problem.message
    assert "ter2" not in repr(problem)


def test_a_password_in_an_address_is_told_from_other_mistakes():
    _, code, message, hint = told(project("database: 'postgresql://ada:hunter2@db/halo'\n"))
    assert (code, message) == ("AH006", "database: a password may not stand in a manifest")
    assert "ARC_HALO_DATABASE_URL" in hint
    assert "password: {env: NAME}" in hint


def test_a_quoted_variable_where_a_number_is_needed_says_what_to_do(tmp_path):
    (tmp_path / "arc_halo.yaml").write_text(project("settings: {threads: '${N}'}\n"))
    [problem] = validate(load_project(tmp_path, env={"N": "4"}), SCHEMA)
    assert (problem.code, problem.column, problem.length) == ("AH004", 21, 6)
    assert "without quotes" in problem.hint


def test_all_problems_of_all_files_come_sorted():
    sources = [
        source_of("project: P\nversion: 2\nmodels: {a: {typo: 1, version: 1}}\n"),
        source_of("reactors: {r: {type: x}}\n", included=True),
    ]
    found = [(p.file, p.line, p.column, p.code) for p in validate(sources[::-1], SCHEMA)]
    assert found == sorted(found)
    assert found == [
        ("arc_halo.yaml", 1, 10, "AH006"),
        ("arc_halo.yaml", 2, 10, "AH006"),
        ("arc_halo.yaml", 3, 14, "AH003"),
        ("arc_halo.yaml", 3, 32, "AH004"),
        ("part.yaml", 1, 12, "AH005"),
        ("part.yaml", 1, 12, "AH005"),
        ("part.yaml", 1, 22, "AH006"),
    ]


def test_a_problem_in_one_of_many_resources_is_found():
    models = "".join(f"  m{number}@1: {{tags: {{n: {number}}}}}\n" for number in range(300))
    problems = problems_of(project(f"models:\n{models}  bad@1: {{tgas: 1}}\n"))
    assert [(p.line, p.message) for p in problems] == [
        (304, "unknown field 'tgas' in models.bad@1")
    ]


@pytest.mark.parametrize(
    "params",
    [
        {"type": "strng"},
        {"type": "object", "properties": {"a": {"minimum": "1"}}},
        {"type": "object", "properties": [], "required": "a"},
        {"$ref": 5},
    ],
)
def test_a_strategy_whose_params_schema_is_none_is_a_plugin_error(params):
    schema = compose_schema({**STRATEGIES, "broken": params}, CODECS)
    with pytest.raises(PluginError, match="'broken'"):
        problems_of(project("strategies: {s: {uses: broken, params: {a: 1}}}\n"), schema=schema)


# Both validators agree


def test_only_schemas_that_mean_the_same_to_both_validators_are_quick():
    assert [name for name, params in STRATEGIES.items() if is_portable(params)] == [
        "linear",
        "ties",
        "needy",
    ]


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.5, 1.0, -2.5, 1e300])
    | st.sampled_from(["", "x", "A", "a@1", "linear", "ties", "1.0", "256KiB", "a:b", "é"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["url", "env", "k", "model", "a"]), inner, max_size=3)
    ),
    max_leaves=4,
)
names = st.sampled_from(
    ["version", "type", "uses", "params", "strategy", "members", "model", "weight", "A", "x@1", "a"]
)
DATA = source_of(FULL).data


def places(value, path=()):
    yield path
    if isinstance(value, dict):
        for name, part in value.items():
            yield from places(part, (*path, name))
    if isinstance(value, list):
        for index, part in enumerate(value):
            yield from places(part, (*path, index))


@st.composite
def mutants(draw):
    data = copy.deepcopy(DATA)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(list(places(data))[1:]))
        parent = data
        for part in path:
            parent = parent[part]
        match draw(st.sampled_from(["replace", "remove", "rename", "insert"])):
            case "replace":
                parent[last] = draw(junk)
            case "remove" if len(data) > 1:
                del parent[last]
            case "rename" if isinstance(parent, dict):
                parent[draw(names)] = parent.pop(last)
            case "insert" if isinstance(parent, dict):
                parent[draw(names)] = draw(junk)
            case _:
                parent[last] = [parent[last]]
    return data


def without_editor_rules(schema):
    return {key: value for key, value in schema.items() if key not in ("if", "then")}


# As jsonschema has it, but for 4.0, which is no integer here.
Stock = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)
PORTABLE = compose_schema({k: v for k, v in STRATEGIES.items() if k != "modern"}, CODECS)


@given(mutants())
@settings(max_examples=200, deadline=None)
def test_the_quick_validator_agrees_with_jsonschema(data):
    fits = Stock(without_editor_rules(PORTABLE)).is_valid(data)
    assert acceptor(PORTABLE)(data) == fits


@given(mutants())
@settings(max_examples=200, deadline=None)
def test_the_quick_validator_accepts_nothing_that_jsonschema_refuses(data):
    fits = Stock(without_editor_rules(SCHEMA)).is_valid(data)
    assert Validator(without_editor_rules(SCHEMA)).is_valid(data) == fits
    assert fits or not acceptor(SCHEMA)(data)


@given(mutants())
@settings(max_examples=200, deadline=None)
def test_every_refusal_is_explained_with_its_place(data):
    text = json.dumps(data, ensure_ascii=False, indent=1)
    problems = problems_of(text)
    role = {**SCHEMA, "required": ["version", "project"]}
    fits = Stock(role).is_valid(data)
    assert bool(problems) == (not fits or wrong_size(data))
    for problem in problems:
        assert problem.hint
        assert problem.line >= 1
        assert "\n" not in problem.message


def wrong_size(data):
    def is_wrong(section, name, low, high):
        value = data.get(section)
        size = value.get(name) if isinstance(value, dict) else None
        return size is not None and not low <= parse_size(str(size)) <= high

    return is_wrong("storage", "chunk_bytes", 2**14, 2**20) or is_wrong(
        "settings", "memory", 2**20, 2**50
    )
