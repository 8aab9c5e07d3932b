"""Validators: members that are asked how good the answers of others are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from arc_halo.errors import OutputError
from arc_halo.outputs import Outputs
from arc_halo.reactors.asking import Asked
from arc_halo.reactors.plans import Member
from arc_halo.reactors.policies import voices
from arc_halo.reactors.records import as_json
from arc_halo.reactors.topologies import Run

Float64 = np.ndarray[Any, np.dtype[np.float64]]


def judged(run: Run, asked: Asked) -> Float64:
    """How good each answer is, from 0 to 1: the mean of all validators.

    A validator that fails is handled by the reactor's policy. Raises `OutputError` for one whose
    answer is no judgement.
    """
    given = questions_about(run, asked)
    indexes = list(range(len(given)))

    def ask_one(member: Member, _: Sequence[int]) -> Asked:
        return run.ask([(member, indexes)], given, asked.indexes)[0]

    asking = [(member, indexes) for member in run.plan.validators]
    heard = voices(run.plan, run.ask(asking, given, asked.indexes), ask_one)
    if not heard:
        raise OutputError(f"{run.plan.name}: no validator answered")
    return np.asarray(np.mean([judgement(voice.asked) for voice in heard], axis=0))


def questions_about(run: Run, asked: Asked) -> list[dict[str, Any]]:
    """What a validator is asked of another member's answers: input, member and answer."""
    answers = each_answer(asked)
    return [
        {"input": run.inputs[index], "member": asked.member.model, "answer": answer}
        for index, answer in zip(asked.indexes, answers, strict=True)
    ]


def each_answer(asked: Asked) -> list[Any]:
    """The answers of a member one by one, as JSON."""
    outputs = asked.outputs
    assert outputs is not None
    return [answer_of(outputs, place) for place in range(len(outputs))]


def answer_of(outputs: Outputs, place: int) -> Any:
    """One answer: a text, a label or a ranking by itself, scores with their classes."""
    one = outputs.take([place])
    for form in (one.texts, one.labels, one.rankings):
        if form is not None:
            return list(form[0]) if isinstance(form[0], tuple) else form[0]
    whole = as_json(one)
    assert one.scores is not None
    found = {one.meaning: whole[one.meaning][0]}
    return found | ({"classes": whole["classes"]} if "classes" in whole else {})


def judgement(asked: Asked) -> Float64:
    """A validator's answers as numbers from 0 to 1: its confidence, or its only or last column."""
    outputs, member = asked.outputs, asked.member
    assert outputs is not None
    if outputs.scores is not None and outputs.meaning in ("probabilities", "scores"):
        values = np.asarray(outputs.scores[:, -1])
    elif outputs.confidence is not None:
        values = outputs.confidence
    else:
        raise _no_judgement(member)
    if ((values < 0) | (values > 1)).any():
        raise OutputError(f"{member.model} judges with numbers that are not from 0 to 1")
    return values


def _no_judgement(member: Member) -> OutputError:
    return OutputError(
        f"{member.model} is a validator, and its answers are no judgement",
        hint="it answers with scores from 0 to 1, probabilities whose last column is that of a "
        "good answer, or a confidence",
    )
