"""`arc-halo embeddings`: embedding matrices, and which of their rows are near to one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table
from arc_halo.errors import NotFoundError

if TYPE_CHECKING:
    from arc_halo.project import Project
    from arc_halo.store.embeddings import EmbeddingMatrix
    from arc_halo.store.models import ModelRecord
    from arc_halo.store.rows import Connection
    from arc_halo.types import JsonObject

KIND = click.option(
    "--kind",
    type=click.Choice(["token", "position", "segment"]),
    default="token",
    show_default=True,
    help="Which embedding of the model.",
)


@click.group("embeddings")
def embeddings() -> None:
    """Search embedding matrices: which rows are nearest to one of them.

    Every search works without pgvector, by reading the matrix; `index` makes those of large
    matrices faster where the server has pgvector.

    \b
    Examples:
      arc-halo embeddings ls
      arc-halo embeddings nearest story 97
    """


@embeddings.command("ls")
@click.argument("model", required=False)
@click.pass_obj
def ls(invocation: Invocation, model: str | None) -> None:
    """List the embedding matrices of all models, or of MODEL.

    \b
    Examples:
      arc-halo embeddings ls
      arc-halo embeddings ls story --output json
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.store.embeddings import matrices

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            found = matrices(conn, None if model is None else _record(conn, model).id)
    header = ("model", "kind", "rows", "dimension", "dtype", "tensor", "indexed rows")
    rows = [
        (m.model, m.kind, str(m.rows), str(m.dimension), m.dtype, m.name, _indexed(m))
        for m in found
    ]
    facts = [{**_matrix_facts(m), "indexed_rows": m.indexed_rows} for m in found]
    render(
        invocation,
        text=lambda: invocation.console.print(
            table(header, rows) if rows else "There are no embedding matrices."
        ),
        json=lambda: as_json({"embeddings": facts}),
        markdown=lambda: markdown_table(header, rows),
    )


@embeddings.command("nearest")
@click.argument("model")
@click.argument("token_id", type=int)
@click.option(
    "-k",
    "k",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many neighbours.",
)
@KIND
@click.option(
    "--metric",
    type=click.Choice(["cosine", "l2", "ip"]),
    default="cosine",
    show_default=True,
    help="Cosine similarity, Euclidean distance, or inner product.",
)
@click.option("--exact", is_flag=True, help="Read the whole matrix, even where there is an index.")
@click.pass_obj
def nearest(
    invocation: Invocation, model: str, token_id: int, k: int, kind: str, metric: str, exact: bool
) -> None:
    """List the rows of MODEL's embedding that are nearest to the row TOKEN_ID, nearest first.

    MODEL is a name, name@version or name:alias. A larger cosine or inner product is nearer, a
    smaller l2. An index, where there is one, answers cosine, and may miss a neighbour;
    what it finds has exact scores. Equal scores are listed by id.

    \b
    Examples:
      arc-halo embeddings nearest story 97
      arc-halo embeddings nearest story 97 -k 3 --metric l2
      arc-halo embeddings nearest story:production 97 --exact --output json
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.weights.nearest import nearest as search

    with invocation.open(needs_database=True) as project:
        matrix = _matrix(project, model, kind)
        answer = search(project.weights, matrix, token_id, k=k, metric=metric, exact=exact)
    header = ("token" if kind == "token" else "row", metric)
    rows = [(str(each.token_id), f"{each.score:.6g}") for each in answer.neighbours]
    facts = {
        **_matrix_facts(matrix),
        "token_id": token_id,
        "metric": metric,
        "method": answer.method,
        "neighbours": [
            {"token_id": each.token_id, "score": each.score} for each in answer.neighbours
        ],
    }
    render(
        invocation,
        text=lambda: invocation.console.print(
            table(header, rows) if rows else "No row can be compared with it."
        ),
        json=lambda: as_json(facts),
        markdown=lambda: markdown_table(header, rows),
    )


@embeddings.command("index")
@click.argument("model")
@KIND
@click.pass_obj
def index(invocation: Invocation, model: str, kind: str) -> None:
    """Index an embedding of MODEL with pgvector, for `nearest` by cosine.

    Creates the extension `vector` in the database if the role may. The index belongs to the
    matrix: models that share the matrix share it, and new weights never answer from an old one.
    It is dropped with the matrix.

    \b
    Examples:
      arc-halo embeddings index story
      arc-halo embeddings index story --kind position
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.sizes import format_count
    from arc_halo.weights.indexing import index_matrix

    with invocation.open(needs_database=True) as project:
        matrix = _matrix(project, model, kind)
        with invocation.console.task(f"index {matrix.model}", matrix.size_bytes) as advance:
            indexed = index_matrix(project.weights, matrix, advance=advance)
    what = f"{format_count(indexed.row_count, 'row')} of the {kind} embedding of {matrix.model}"
    text = f"Indexed {what}." if indexed.is_new else f"Nothing to do: {what} are indexed."
    facts = {
        **_matrix_facts(matrix),
        "indexed_rows": indexed.row_count,
        "is_new": indexed.is_new,
    }
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json(facts),
        markdown=lambda: text,
    )


@embeddings.command("drop-index")
@click.argument("model")
@KIND
@click.pass_obj
def drop_index(invocation: Invocation, model: str, kind: str) -> None:
    """Drop the index of an embedding of MODEL, for all models that share the matrix.

    \b
    Example:
      arc-halo embeddings drop-index story
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.store import embeddings as store

    with invocation.open(needs_database=True) as project:
        matrix = _matrix(project, model, kind)
        with project.connection() as conn:
            was_there = store.drop_index(conn, matrix.id)
    what = f"the index of the {kind} embedding of {matrix.model}"
    text = f"Dropped {what}." if was_there else f"Nothing to do: there is no {what[4:]}."
    render(
        invocation,
        text=lambda: invocation.console.print(text),
        json=lambda: as_json({**_matrix_facts(matrix), "dropped": was_there}),
        markdown=lambda: text,
    )


def _matrix(project: Project, model: str, kind: str) -> EmbeddingMatrix:
    from arc_halo.weights.nearest import find_matrix

    project.check_schema()
    with project.connection() as conn:
        record = _record(conn, model)
        return find_matrix(conn, record.id, record.full_name, kind)


def _record(conn: Connection, model: str) -> ModelRecord:
    from arc_halo.reconcile.showing import find_model

    record = find_model(conn, model)
    if record is None:
        raise NotFoundError(f"there is no model {model!r}", hint="see `arc-halo get models`")
    return record


def _matrix_facts(matrix: EmbeddingMatrix) -> JsonObject:
    return {
        "model": matrix.model,
        "kind": matrix.kind,
        "tensor": matrix.name,
        "rows": matrix.rows,
        "dimension": matrix.dimension,
        "dtype": matrix.dtype,
    }


def _indexed(matrix: EmbeddingMatrix) -> str:
    return "-" if matrix.indexed_rows is None else str(matrix.indexed_rows)
