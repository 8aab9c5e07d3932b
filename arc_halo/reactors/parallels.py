"""The topology `parallel`: all members at once, their answers side by side or one chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arc_halo.errors import ReactorError
from arc_halo.outputs import Outputs, joined
from arc_halo.reactors.asking import Asked
from arc_halo.reactors.cascades import confidence
from arc_halo.reactors.judging import judged
from arc_halo.reactors.policies import Voice, check_quorum, voices
from arc_halo.reactors.topologies import Answered, Run, questions


def parallel(run: Run) -> Answered:
    """What each member answers, or the answer of the first, the fastest or the best.

    The best is by the validators, for each input; without validators it is the surest.
    """
    if run.plan.choose == "fastest":
        return _fastest(run)
    asked = run.ask(questions(run.plan.voters, run.inputs))
    heard = voices(run.plan, asked, run.ask_one)
    check_quorum(run.plan, heard, len(run.inputs), run.asked)
    if run.plan.choose == "all":
        return Answered(outputs=None, side_by_side=_named(heard))
    if run.plan.choose == "first":
        ranked = sorted(heard, key=lambda voice: run.plan.ordered.index(voice.member))
        return Answered(outputs=_first(run, ranked), side_by_side=_named(heard))
    return Answered(outputs=_best(run, heard), side_by_side=_named(heard))


def _named(heard: Sequence[Voice]) -> dict[str, Outputs]:
    return {
        voice.member.model: voice.asked.outputs
        for voice in heard
        if voice.asked.outputs is not None
    }


def _fastest(run: Run) -> Answered:
    """The first whole answer that comes in; nobody waits for the others."""
    asked: list[Asked] = []

    def is_enough(each: Asked) -> bool:
        return each.outputs is not None and len(each.indexes) == len(run.inputs)

    wanted = questions(run.plan.voters, run.inputs)
    for each in run.panel.ask_until(wanted, run.inputs, run.plan.timeout_seconds, is_enough):
        asked.append(each)
        run.asked.append(each)
        if is_enough(each):
            assert each.outputs is not None
            return Answered(outputs=each.outputs)
    heard = [
        Voice(member=each.member, asked=each, weight=each.member.weight)
        for each in asked
        if each.outputs is not None
    ]
    if not heard:
        told = next((each.error.message for each in asked if each.error is not None), "")
        raise ReactorError(f"{run.plan.name}: no member answered: {told}")
    check_quorum(run.plan, heard, len(run.inputs), run.asked)
    return Answered(outputs=_first(run, heard))


def _first(run: Run, heard: Sequence[Voice]) -> Outputs:
    """Of each input the answer of the first member, in that order, that has one."""
    chosen: dict[int, Voice] = {}
    for voice in heard:
        for index in voice.asked.indexes:
            chosen.setdefault(index, voice)
    return _chosen(run, chosen)


def _best(run: Run, heard: Sequence[Voice]) -> Outputs:
    best: dict[int, tuple[float, Voice]] = {}
    for voice in heard:
        values = judged(run, voice.asked) if run.plan.validators else confidence(run, voice.asked)
        for index, value in zip(voice.asked.indexes, np.asarray(values).tolist(), strict=True):
            if index not in best or value > best[index][0]:
                best[index] = (value, voice)
    return _chosen(run, {index: voice for index, (_, voice) in best.items()})


def _chosen(run: Run, chosen: dict[int, Voice]) -> Outputs:
    groups: dict[str, tuple[Voice, list[int]]] = {}
    for index, voice in sorted(chosen.items()):
        groups.setdefault(voice.member.model, (voice, []))[1].append(index)
    parts = [(indexes, voice.answers(indexes)) for voice, indexes in groups.values()]
    return joined(parts, len(run.inputs))
