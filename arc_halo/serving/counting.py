"""Tokens that an answer took, and why its texts ended, as far as runners say so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

from arc_halo.outputs import Outputs
from arc_halo.reactors.running import Answer

Reason = Literal["stop", "length", "content_filter"]

CUT: tuple[Reason, ...] = ("length", "content_filter")
"""Why a text ended before its end."""
COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


def usage_of(answer: Answer) -> dict[str, int]:
    """The tokens that members counted, all together; 0 where none does.

    Where tokens are fused, members read and write the same ones, which the answer itself counts.
    """
    found = [_counts(each.outputs) for each in answer.members if each.outputs]
    if not any(map(any, found)) and answer.outputs is not None:
        found = [_counts(answer.outputs)]
    return {name: sum(each[place] for each in found) for place, name in enumerate(COUNTS)}


def reasons_of(answer: Answer, texts: Sequence[str]) -> list[Reason]:
    """Why each text of an answer ended: `stop` unless it is known to be cut.

    A fused text that members have written was cut if it was cut for one of them; members that
    answer side by side make one text, cut where any of theirs was.
    """
    fused = answer.outputs
    own = _reasons(fused, len(texts)) if fused is not None else [None] * len(texts)
    members: dict[int, Reason] = {}
    for index, text, reason in _told(answer):
        if fused is None or text == texts[index]:
            members.setdefault(index, reason)
    return [_known(each) or members.get(index, "stop") for index, each in enumerate(own)]


def _told(answer: Answer) -> Iterator[tuple[int, str, Reason]]:
    """Inputs, texts and reasons, of all texts that members know to be cut."""
    for each in answer.members:
        outputs = each.outputs
        if outputs is None or outputs.texts is None or len(outputs.texts) != len(each.indexes):
            continue
        reasons = _reasons(outputs, len(each.indexes))
        for index, text, reason in zip(each.indexes, outputs.texts, reasons, strict=True):
            if (known := _known(reason)) is not None:
                yield index, text, known


def _known(reason: Any) -> Reason | None:
    return cast(Reason, reason) if reason in CUT else None


def _reasons(outputs: Outputs, count: int) -> Sequence[Any]:
    found = outputs.details.get("finish_reason")
    return found if isinstance(found, list) and len(found) == count else [None] * count


def _counts(outputs: Outputs) -> tuple[int, ...]:
    """What a member counted: of its whole batch, as `usage`, or input by input."""
    usage = outputs.details.get("usage")
    if isinstance(usage, dict):
        return tuple(usage[name] if _is_count(usage.get(name)) else 0 for name in COUNTS)
    prompt, completion = (_sum(outputs.details.get(name)) for name in COUNTS[:2])
    return prompt, completion, prompt + completion


def _sum(values: Any) -> int:
    return sum(filter(_is_count, values)) if isinstance(values, list) else 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
