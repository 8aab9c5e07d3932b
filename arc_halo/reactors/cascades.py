"""The topology `cascade`: one member after another, until one is sure enough."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arc_halo.errors import OutputError, ReactorError
from arc_halo.outputs import Outputs
from arc_halo.reactors.asking import Asked
from arc_halo.reactors.judging import judged
from arc_halo.reactors.plans import Member
from arc_halo.reactors.policies import Voice, voices
from arc_halo.reactors.topologies import Answered, Run, questions


def cascade(run: Run) -> Answered:
    """Members by priority; each is asked the inputs that none before was sure enough about.

    An answer is taken where its confidence reaches the threshold, and from the last member in any
    case (L. Chen et al., "FrugalGPT", 2023). Where the last one fails, and failures are skipped,
    the surest answer so far is taken.
    """
    rest = list(range(len(run.inputs)))
    taken: list[Voice] = []
    unsure: list[tuple[Voice, np.ndarray]] = []
    stages = run.plan.ordered
    for number, member in enumerate(stages):
        told = _told(member, unsure)
        asked_for = [index for index in _open(run, member, rest) if index not in told]
        if not asked_for:
            continue
        asked = run.ask_one(member, asked_for)
        heard = voices(run.plan, [asked], run.ask_one)
        if not heard:
            continue
        (voice,) = heard
        is_last = number == len(stages) - 1
        sure = np.ones(len(asked_for)) if is_last else confidence(run, voice.asked)
        enough = sure >= run.plan.threshold
        done = [index for index, is_enough in zip(asked_for, enough, strict=True) if is_enough]
        if done:
            taken.append(voice.part(done))
        unsure.append((voice, sure))
        rest = [index for index in rest if index not in set(done)]
        if not rest:
            break
    taken += _surest(run, rest, unsure)
    return Answered(outputs=run.fuser.fuse(taken, run.inputs))


def confidence(run: Run, asked: Asked) -> np.ndarray:
    """How sure an answer is: as validators judge it, as the model says, or its best probability."""
    outputs = asked.outputs
    assert outputs is not None
    if run.plan.validators:
        return judged(run, asked)
    if outputs.confidence is not None:
        return outputs.confidence
    if outputs.scores is None or outputs.meaning not in ("probabilities", "logits"):
        raise OutputError(
            f"{asked.member.model} does not say how sure it is of its answers",
            hint="a cascade needs probabilities, logits, a confidence, or a validator",
        )
    return best_probability(outputs)


def best_probability(outputs: Outputs) -> np.ndarray:
    scores = outputs.scores
    assert scores is not None
    if outputs.meaning == "probabilities":
        return np.asarray(scores.max(axis=1))
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(1 / powers.sum(axis=1))


def _told(member: Member, unsure: Sequence[tuple[Voice, np.ndarray]]) -> set[int]:
    """What a member has answered already, in the place of another."""
    return {
        index
        for voice, _ in unsure
        if voice.asked.member.model == member.model
        for index in voice.asked.indexes
    }


def _open(run: Run, member: Member, rest: Sequence[int]) -> list[int]:
    """Of the inputs that are left those that the member is asked at all."""
    asked = {index for _, indexes in questions([member], run.inputs) for index in indexes}
    return [index for index in rest if index in asked]


def _surest(
    run: Run, rest: Sequence[int], unsure: Sequence[tuple[Voice, np.ndarray]]
) -> list[Voice]:
    """For what nobody was sure enough about, and the last one did not answer."""
    best: dict[int, tuple[float, Voice]] = {}
    for voice, sure in unsure:
        for index, value in zip(voice.asked.indexes, sure.tolist(), strict=True):
            if index in rest and (index not in best or value > best[index][0]):
                best[index] = (value, voice)
    if len(best) < len(rest):
        raise ReactorError(f"{run.plan.name}: no member of the cascade answered")
    return [voice.part([index]) for index, (_, voice) in best.items()]
