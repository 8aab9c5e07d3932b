"""`arc-halo tensors du`: what models take, and what sharing and codecs save."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from arc_halo.cli.invocation import Invocation, markdown_table, render, table

if TYPE_CHECKING:
    from arc_halo.types import JsonObject


@click.command("du")
@click.pass_obj
def du(invocation: Invocation) -> None:
    """Say what stored tensors take: by model, by codec, and what sharing saved.

    Logical bytes are the tensors as they are; unique bytes count each different chunk once;
    stored bytes are what is left of those after encoding. `own` would be freed with the model.

    \b
    Examples:
      arc-halo tensors du
      arc-halo tensors du --output json
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.sizes import format_size
    from arc_halo.store import usage

    with invocation.open(needs_database=True) as project:
        project.check_schema()
        with project.connection() as conn:
            models, codecs = usage.models(conn), usage.codecs(conn)
            unique, stored = usage.of_models(conn)
    logical = sum(model.logical_bytes for model in models)
    everything = sum(codec.stored_bytes for codec in codecs)
    totals: JsonObject = {
        "logical_bytes": logical,
        "unique_bytes": unique,
        "stored_bytes": stored,
        "saved_by_sharing_bytes": logical - unique,
        "saved_by_codecs_bytes": unique - stored,
        "of_no_model_bytes": everything - stored,
    }
    by_model = [
        (m.model, *map(format_size, (m.logical_bytes, m.unique_bytes, m.stored_bytes, m.own_bytes)))
        for m in models
    ]
    by_codec = [
        (c.codec, f"{c.chunks:,}", *map(format_size, (c.raw_bytes, c.stored_bytes)), _ratio(c))
        for c in codecs
    ]
    summary = [
        (
            f"logical {format_size(logical)}, unique {format_size(unique)}, "
            f"stored {format_size(stored)}"
        ),
        (
            f"saved by sharing {format_size(logical - unique)}, "
            f"by codecs {format_size(unique - stored)}"
        ),
    ]
    if everything > stored:
        summary.append(
            f"of no model {format_size(everything - stored)}: history, checkpoints, unfinished "
            "builds, or what `arc-halo tensors gc` frees"
        )
    model_header = ("model", "logical", "unique", "stored", "own")
    codec_header = ("codec", "chunks", "raw", "stored", "ratio")
    facts = {
        "models": [dataclasses.asdict(model) for model in models],
        "codecs": [dataclasses.asdict(codec) for codec in codecs],
        "totals": totals,
    }

    def text() -> None:
        if not codecs:
            invocation.console.print("No tensors are stored.")
            return
        parts = [table(model_header, by_model), table(codec_header, by_codec), "\n".join(summary)]
        invocation.console.print("\n\n".join(parts))

    render(
        invocation,
        text=text,
        json=lambda: as_json(facts),
        markdown=lambda: "\n\n".join(
            [
                markdown_table(model_header, by_model),
                markdown_table(codec_header, by_codec),
                "\n".join(f"- {line}" for line in summary),
            ]
        ),
    )


def _ratio(codec: object) -> str:
    from arc_halo.store.usage import CodecUsage

    assert isinstance(codec, CodecUsage)
    return f"{codec.stored_bytes / codec.raw_bytes:.3f}"
