"""The benchmarks' corpus, small: it is a project like any other."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from arc_halo.manifest.documents import ModelSpec
from arc_halo.project import Project

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script, *args, **environ):
    """What a benchmark script prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *map(str, args)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_corpus(directory, models=50, reactors=10, files=3):
    run("corpus.py", directory, "--models", models, "--reactors", reactors, "--files", files)
    return directory


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")


def apply(directory, database):
    with Project(directory, database_url=database) as project:
        return project.apply(project.plan())


def no_op_statements(directory, database):
    said = json.loads(run("probes.py", "statements", directory, ARC_HALO_DATABASE_URL=database))
    assert not said["has_changes"]
    return said


def test_the_corpus_is_the_same_each_time(corpus, tmp_path):
    again = write_corpus(tmp_path / "again")
    files = sorted(path.relative_to(corpus) for path in corpus.rglob("*") if path.is_file())
    assert len(files) == 1 + 3 + 20 + 1
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((corpus / file).read_bytes() == (again / file).read_bytes() for file in files)


def test_the_corpus_has_the_size_asked_for(corpus):
    with Project(corpus) as project:
        kinds = [key.kind for key in project.desired_without_database().declarations]
    assert (kinds.count("model"), kinds.count("reactor")) == (50, 10)


def test_the_corpus_has_20_architectures_of_4_layers_and_4_heads(corpus):
    with Project(corpus) as project:
        declarations = project.desired_without_database().declarations.values()
    configs = [d.spec.architecture for d in declarations if isinstance(d.spec, ModelSpec)]
    assert len({json.dumps(config, sort_keys=True) for config in configs}) == 20
    assert {c["num_hidden_layers"] for c in configs} == {4}
    assert {c["num_attention_heads"] for c in configs} == {4}


def test_the_corpus_applies_and_then_there_is_nothing_to_do(corpus, database):
    report = apply(corpus, database)
    assert report.plan.counts == {"create": 50 + 10 + 3}
    with Project(corpus, database_url=database) as project:
        again = project.plan()
        with project.connection() as conn:
            rows = conn.execute(
                "SELECT (SELECT count(*) FROM models), (SELECT count(*) FROM attention_heads), "
                "(SELECT count(*) FROM cognitive_fusion_reactors), "
                "(SELECT count(*) FROM reactor_models)"
            ).fetchone()
    assert not again.has_changes
    assert again.unchanged_count == 50 + 10 + 3
    assert rows == (50, 50 * 4 * 4, 10, 40)


def test_a_plan_takes_as_many_statements_for_many_resources_as_for_few(
    corpus, tmp_path, create_database, template
):
    few = create_database(template)
    many = create_database(template)
    larger = write_corpus(tmp_path / "larger", models=400, reactors=60, files=7)
    apply(corpus, few)
    apply(larger, many)
    small, large = no_op_statements(corpus, few), no_op_statements(larger, many)
    assert large["resources"] > 7 * small["resources"]
    assert large["statements"] == small["statements"]


def test_the_corpus_plugin_gives_the_mean_of_outputs(corpus):
    with Project(corpus) as project:
        mean = project.plugins.strategy("mean_outputs").item.combine_outputs
    assert mean is not None
    outputs, context = [np.array([0.0, 2.0]), np.array([4.0, 6.0])], SimpleNamespace(weights=(3, 1))
    assert mean(outputs, context).tolist() == [1.0, 3.0]
    assert mean(outputs, context, weighted=False).tolist() == [2.0, 4.0]
