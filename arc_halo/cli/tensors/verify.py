"""`arc-halo tensors verify`: is every byte what it was, and if not, whose is it."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from arc_halo.cli.console import printable
from arc_halo.cli.invocation import Invocation, markdown_table, render
from arc_halo.cli.tensors.models import weights_of
from arc_halo.errors import BodyStoreError, CorruptChunkError, UnknownPluginError, UsageError

if TYPE_CHECKING:
    from arc_halo.project import Project
    from arc_halo.types import JsonObject, WeightFormat
    from arc_halo.weights.findings import Finding
    from arc_halo.weights.verifying import Verified

SHOWN_FINDINGS = 50
SHOWN_TOUCHES = 8


@click.command("verify")
@click.argument("model", required=False)
@click.option(
    "--sample", metavar="PERCENT", help="Read only a random part of the chunks, as in 5%."
)
@click.option(
    "--repair-from",
    "sources",
    metavar="FILE",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Write damaged chunks again from these weights; may be given more than once.",
)
@click.pass_obj
def verify(
    invocation: Invocation, model: str | None, sample: str | None, sources: tuple[Path, ...]
) -> None:
    """Read stored tensors again and hash them: those of MODEL, or all.

    Every damaged or missing chunk is reported with the tensors and models it belongs to, in
    history and checkpoints too; a damaged base damages the deltas taken against it. Lists of
    chunks and roots of weight sets are checked against their digests, all of them even with
    `--sample`. Exits 1 when anything is damaged or could not be read.

    \b
    Examples:
      arc-halo tensors verify
      arc-halo tensors verify story --output json
      arc-halo tensors verify --sample 5%
      arc-halo tensors verify story --repair-from story.safetensors
    """
    from arc_halo.reconcile.report import as_json
    from arc_halo.weights.verifying import part_of_digests
    from arc_halo.weights.verifying import verify as run

    part = None
    if sample is not None:
        part = part_of_digests(parse_share(sample), random.random())
    with invocation.open(needs_database=True) as project:
        project.check_schema()
        set_id = None
        size_bytes = 0
        if model is not None:
            with project.connection() as conn:
                record, set_id = weights_of(conn, model)
            size_bytes = 0 if part else record.size_bytes or 0
        for path in sources:
            _format_of(project, path)
        with invocation.console.task("verify", size_bytes) as advance:
            done = run(project.weights, set_id, part=part, advance=advance)
        outcome = _Outcome(done, done.findings, sources)
        if sources and done.findings:
            left = _repair(invocation, project, done.findings, sources)
            outcome = _Outcome(done, left, sources)
    render(
        invocation,
        text=lambda: invocation.console.print(outcome.text()),
        json=lambda: as_json(outcome.facts()),
        markdown=lambda: outcome.markdown(),
    )
    outcome.raise_if_damaged()


def parse_share(text: str) -> float:
    """`5%` as 0.05. Raises `UsageError` for what is no part of a hundred."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d{1,9})?)\s*%?", text.strip())
    share = float(match[1]) / 100 if match else 0.0
    if not 0 < share <= 1:
        raise UsageError(
            f"{text!r} is no part to sample", hint="write a percentage above 0, as in 5%"
        )
    return share


def _repair(
    invocation: Invocation, project: Project, findings: Sequence[Finding], sources: Sequence[Path]
) -> list[Finding]:
    """Heal what the sources have; what is still damaged."""
    from arc_halo.transfer.sources import PIECE_BYTES, pieces
    from arc_halo.weights.repairing import repair
    from arc_halo.weights.verifying import verify_again

    left = list(findings)
    for path in sources:
        with _format_of(project, path).open(path) as reader:
            total = sum(tensor.size_bytes for tensor in reader.tensors)
            with invocation.console.task(f"read {path.name}", total) as advance:
                buffer = memoryview(bytearray(PIECE_BYTES))
                produce = partial(pieces, reader, buffer=buffer)
                repair(project.weights, left, reader.tensors, produce, advance=advance)
        left = verify_again(project.weights, left)
        if not left:
            break
    return left


def _format_of(project: Project, path: Path) -> WeightFormat:
    from arc_halo.formats.finding import find_format

    return find_format(path, {name: p.item for name, p in project.plugins.formats.items()})


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What was found, and what of it is left after repair."""

    done: Verified
    left: Sequence[Finding]
    sources: Sequence[Path]

    @property
    def healed(self) -> list[Finding]:
        left = {(finding.what, finding.digest) for finding in self.left}
        return [f for f in self.done.findings if (f.what, f.digest) not in left]

    def text(self) -> str:
        from arc_halo.sizes import format_count, format_size

        counts = (
            format_count(self.done.chunks, "chunk"),
            format_size(self.done.raw_bytes),
            format_count(self.done.tensors, "tensor"),
            format_count(self.done.weight_sets, "weight set"),
        )
        lines = ["Read {}, {}; checked {} in {}.".format(*counts)]
        for finding in self.left[:SHOWN_FINDINGS]:
            lines += _lines(finding)
        if len(self.left) > SHOWN_FINDINGS:
            lines.append(f"… and {len(self.left) - SHOWN_FINDINGS} more; `--output json` has all")
        lines += [f"healed {f.what} {f.digest.hex()}" for f in self.healed[:SHOWN_FINDINGS]]
        lines += [
            f"{format_count(count, 'chunk')} not read: in body store {place}, "
            "which this project does not name"
            for place, count in self.done.elsewhere.items()
        ]
        if self.sources and self.done.findings:
            lines.append(f"{len(self.healed)} healed, {len(self.left)} left.")
        if not self.left:
            rest = " of what was read" if self.done.elsewhere else ""
            lines.append(f"Nothing{rest} is damaged.")
        return "\n".join(lines)

    def facts(self) -> JsonObject:
        return {
            "chunks": self.done.chunks,
            "raw_bytes": self.done.raw_bytes,
            "tensors": self.done.tensors,
            "weight_sets": self.done.weight_sets,
            "damaged": [_facts(finding) for finding in self.left],
            "healed": [_facts(finding) for finding in self.healed],
            "elsewhere": [
                {"body_store": place, "chunks": count}
                for place, count in self.done.elsewhere.items()
            ],
        }

    def markdown(self) -> str:
        rows: list[tuple[str, ...]] = [
            (f.what, f"`{f.digest.hex()[:16]}`", f.codec or "", f.problem, "; ".join(_places(f)))
            for f in self.left
        ]
        rows += [
            (f"{count:,} chunks", "", "", f"not read: in body store {place}", "")
            for place, count in self.done.elsewhere.items()
        ]
        if not rows:
            return "Nothing is damaged."
        return markdown_table(("what", "digest", "codec", "problem", "touches"), rows)

    def raise_if_damaged(self) -> None:
        from arc_halo.sizes import format_count

        for place, count in self.done.elsewhere.items() if not self.left else ():
            raise BodyStoreError(
                f"{format_count(count, 'chunk')} could not be read: in body store {place}, "
                "which this project does not name",
                hint="`SELECT url FROM body_stores` says where it is: name it in `storage.bodies`",
            )
        if not self.left:
            return
        if all(finding.is_unread for finding in self.left):
            problems = sorted({finding.problem for finding in self.left})
            raise UnknownPluginError(
                f"{format_count(len(self.left), 'chunk')} could not be read: {problems[0]}",
                hint="install the package that wrote them, or list its file in `plugins:`; "
                "`--repair-from FILE` writes them again without it",
            )
        names = sorted({h.name for f in self.left for h in f.touches if h.kind == "model"})
        of = f" of {', '.join(names[:5])}{' and others' if len(names) > 5 else ''}" if names else ""
        raise CorruptChunkError(
            f"{format_count(len(self.left), 'thing')} stored{of} cannot be read as it was",
            hint="`--repair-from FILE` heals chunks from the weights they came from"
            if not self.sources
            else "give the other files the weights came from, or restore a backup",
        )


def _lines(finding: Finding) -> list[str]:
    from arc_halo.sizes import format_count

    codec = f" ({finding.codec})" if finding.codec else ""
    lines = [f"{finding.what} {finding.digest.hex()}{codec}: {finding.problem}"]
    if finding.delta_count:
        deltas = format_count(finding.delta_count, "delta")
        lines.append(f"    damages {deltas} taken against it")
    places = _places(finding)
    lines += [f"    {place}" for place in places[:SHOWN_TOUCHES]]
    if len(places) > SHOWN_TOUCHES:
        lines.append(f"    … and {len(places) - SHOWN_TOUCHES} more")
    return lines


def _places(finding: Finding) -> list[str]:
    said = {
        "model": "of model {}",
        "history": "in the history of model {}",
        "reactor": "learnt by reactor {}",
        "checkpoint": "of checkpoint {}",
        "gradient": "as a gradient of model {}",
        "build": "of unfinished build {}",
        "activations": "in cached activations of {}",
    }
    places = [
        printable(f"{h.tensor} {said[h.kind].format(h.name)}".strip(), one_line=True)
        for h in finding.touches
    ]
    return places or ["of no model, history or checkpoint"]


def _facts(finding: Finding) -> JsonObject:
    return {
        "what": finding.what,
        "digest": f"sha256:{finding.digest.hex()}",
        "codec": finding.codec,
        "problem": finding.problem,
        "is_unread": finding.is_unread,
        "deltas": finding.delta_count,
        "touches": [
            {"tensor": h.tensor or None, "kind": h.kind, "name": h.name} for h in finding.touches
        ],
    }
