"""Each topology by itself, over members that answer what a test says: no database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from arc_halo.errors import OutputError, ReactorError
from arc_halo.manifest.documents import InteractionSpec
from arc_halo.outputs import Outputs
from arc_halo.plugins import PluginManager
from arc_halo.reactors.asking import Panel
from arc_halo.reactors.fusing import Fuser
from arc_halo.reactors.plans import Member, ReactorPlan
from arc_halo.reactors.running import TOPOLOGIES
from arc_halo.reactors.topologies import Answered, Run

PLUGINS = PluginManager()
Answer = Callable[[Sequence[Any]], Any]


class Model:
    """Answers as a function does, and remembers what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[list[Any]] = []
        self._answer = answer

    def answer(self, inputs: Sequence[Any]) -> Any:
        self.asked.append(list(inputs))
        return self._answer(inputs)


def says(*rows: Sequence[float], **fields: Any) -> Model:
    """A model with a row of probabilities for each number that it may be asked."""

    def answer(inputs: Sequence[Any]) -> Outputs:
        numbers = [each["input"] if isinstance(each, dict) else each for each in inputs]
        picked = {name: np.array(value)[numbers] for name, value in fields.items()}
        return Outputs(scores=np.array(rows, float)[numbers], classes=("no", "yes"), **picked)

    return Model(answer)


def failing(message: str = "out of order") -> Model:
    def answer(inputs: Sequence[Any]) -> Outputs:
        raise RuntimeError(message)

    return Model(answer)


def member(name: str, **fields: Any) -> Member:
    usual = {"role": "secondary", "weight": 1.0, "priority": None, "cost": 1.0, "domains": ()}
    return Member(model=name, runner=None, **{**usual, **fields})


def plan(type_: str, members: Sequence[Member], **fields: Any) -> ReactorPlan:
    usual: dict[str, Any] = {
        "strategy": "weighted_average", "params": {}, "interactions": (), "on_failure": "fail",
        "fallback": None, "quorum": 1, "timeout_seconds": None, "threshold": 0.8, "choose": "all",
        "record": "none", "record_ttl": None,
    }  # fmt: skip
    return ReactorPlan(name="r", type=type_, members=tuple(members), **{**usual, **fields})


def run(
    wanted: ReactorPlan, models: dict[str, Model], inputs: Sequence[Any]
) -> tuple[Answered, Run]:
    fuser = Fuser(reactor="r", provided=PLUGINS.strategy(wanted.strategy), params={})
    running = Run(plan=wanted, panel=Panel(models), fuser=fuser, inputs=inputs)
    return TOPOLOGIES[wanted.type](running), running


def scores(answered: Answered) -> list[list[float]]:
    assert answered.outputs is not None
    assert answered.outputs.scores is not None
    return np.round(answered.outputs.scores, 9).tolist()


def edge(source: str, kind: str, target: str, weight: float = 1.0) -> InteractionSpec:
    return InteractionSpec(source=source, target=target, kind=kind, weight=weight)


def test_an_ensemble_fuses_the_answers_of_all_members_by_their_weights() -> None:
    models = {"a": says((1, 0), (0, 1)), "b": says((0, 1), (0, 1))}
    answered, _ = run(plan("ensemble", [member("a", weight=3.0), member("b")]), models, [0, 1])
    assert scores(answered) == [[0.75, 0.25], [0, 1]]


def test_the_order_of_members_does_not_show_where_the_rule_commutes() -> None:
    numbers = np.random.default_rng(3)
    models = {name: says(*numbers.dirichlet([1, 1], size=9)) for name in "abcde"}
    weights = dict(zip(models, numbers.uniform(size=5).tolist(), strict=True))
    bits = set()
    for order in ("abcde", "edcba", "cbead"):
        members = [member(name, weight=weights[name]) for name in order]
        answered, _ = run(plan("ensemble", members), models, list(range(9)))
        assert answered.outputs is not None
        assert answered.outputs.scores is not None
        bits.add(answered.outputs.scores.tobytes())
    assert len(bits) == 1


def test_a_specialist_is_asked_about_its_domains_only() -> None:
    models = {"a": says((1, 0), (1, 0)), "b": says((0, 1), (0, 1))}
    members = [member("a"), member("b", role="specialist", domains=("law",))]
    inputs = [{"input": 0, "domain": "law"}, {"input": 1, "domain": "art"}]
    answered, running = run(plan("ensemble", members), models, inputs)
    assert scores(answered) == [[0.5, 0.5], [1, 0]]
    assert models["b"].asked == [[inputs[0]]]
    assert [each.indexes for each in running.asked] == [(0, 1), (0,)]


def test_a_validator_has_no_say_in_an_ensemble() -> None:
    models = {"a": says((1, 0)), "v": says((0, 1))}
    answered, _ = run(plan("ensemble", [member("a"), member("v", role="validator")]), models, [0])
    assert scores(answered) == [[1, 0]]
    assert models["v"].asked == []


FAILURES = {
    "fail": (ReactorError, "b: RuntimeError: out of order"),
    "skip": None,
    "fallback": None,
}


@pytest.mark.parametrize("policy", FAILURES)
def test_a_member_that_fails_is_handled_by_the_policy(policy: str) -> None:
    models = {"a": says((1, 0)), "b": failing(), "c": says((0, 1))}
    members = [member("a"), member("b", weight=2.0), member("c")]
    wanted = plan("ensemble", members, on_failure=policy, fallback="c")
    if policy == "fail":
        with pytest.raises(ReactorError, match="b: RuntimeError: out of order"):
            run(wanted, models, [0])
        return
    answered, running = run(wanted, models, [0])
    assert scores(answered) == ([[0.5, 0.5]] if policy == "skip" else [[0.25, 0.75]])
    assert [each.member.model for each in running.asked if each.error] == ["b"]
    assert len(models["c"].asked) == 1


def test_a_fallback_that_fails_too_is_told_with_both_reasons() -> None:
    models = {"a": says((1, 0)), "b": failing("b broke"), "c": failing("c broke")}
    wanted = plan("ensemble", [member(n) for n in models], on_failure="fallback", fallback="c")
    with pytest.raises(ReactorError, match=r"b broke; and its fallback: .*c broke"):
        run(wanted, models, [0])


def test_a_quorum_that_is_missed_is_an_error() -> None:
    models = {"a": says((1, 0)), "b": failing(), "c": failing()}
    wanted = plan("ensemble", [member(n) for n in models], on_failure="skip", quorum=2)
    with pytest.raises(
        ReactorError,
        match="1 of 3 members answered, and its quorum is 2: b: RuntimeError: out of order",
    ):
        run(wanted, models, [0])


NONSENSE: dict[str, Any] = {
    "too few": lambda inputs: Outputs(scores=np.ones((1, 1))),
    "no probabilities": lambda inputs: Outputs(scores=np.full((len(inputs), 2), 0.7)),
    "NaN": lambda inputs: Outputs(scores=np.full((len(inputs), 2), np.nan), meaning="scores"),
    "nothing": lambda inputs: Outputs(),
    "no outputs": lambda inputs: [0.5, 0.5],
}


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_is_a_failure_of_the_member(what: str) -> None:
    models = {"a": says((1, 0), (0, 1)), "b": Model(NONSENSE[what])}
    wanted = plan("ensemble", [member("a"), member("b")], on_failure="skip")
    answered, running = run(wanted, models, [0, 1])
    assert scores(answered) == [[1, 0], [0, 1]]
    assert running.asked[1].error is not None


def test_a_member_that_takes_too_long_is_not_waited_for() -> None:
    released = threading.Event()
    slow = Model(lambda inputs: released.wait(30))
    wanted = plan("ensemble", [member("a"), member("b")], on_failure="skip", timeout_seconds=0.2)
    started = time.monotonic()
    answered, running = run(wanted, {"a": says((1, 0)), "b": slow}, [0])
    released.set()
    assert time.monotonic() - started < 5
    assert scores(answered) == [[1, 0]]
    assert "no answer within 0.2 s" in str(running.asked[1].error)


def test_members_are_asked_at_once() -> None:
    barrier = threading.Barrier(4, timeout=20)

    def answer(inputs: Sequence[Any]) -> Outputs:
        barrier.wait()
        return Outputs(scores=np.array([[1.0, 0.0]]))

    models = {name: Model(answer) for name in "abcd"}
    run(plan("ensemble", [member(name) for name in models]), models, [0])


def test_a_cascade_stops_where_somebody_is_sure_enough() -> None:
    small = says((0.95, 0.05), (0.6, 0.4), (0.3, 0.7))
    large = says((0, 1), (0.1, 0.9), (0.45, 0.55))
    members = [member("large", priority=2, cost=10.0), member("small", priority=1, cost=1.0)]
    answered, running = run(plan("cascade", members), {"small": small, "large": large}, [0, 1, 2])
    assert scores(answered) == [[0.95, 0.05], [0.1, 0.9], [0.45, 0.55]]
    assert small.asked == [[0, 1, 2]]
    assert large.asked == [[1, 2]]
    assert sum(each.costs.sum() for each in running.asked) == 3 + 20


def test_a_cascade_goes_by_what_the_model_says_of_itself_and_by_validators() -> None:
    small = says((0.95, 0.05), (0.6, 0.4), confidence=[0.1, 0.9])
    large = says((0, 1), (0, 1))
    members = [member("small"), member("large")]
    answered, _ = run(plan("cascade", members), {"small": small, "large": large}, [0, 1])
    assert scores(answered) == [[0, 1], [0.6, 0.4]]
    judge = Model(
        lambda asked: Outputs(
            scores=np.array([[float(each["input"])] for each in asked]), meaning="scores"
        )
    )
    members.append(member("judge", role="validator"))
    models = {"small": small, "large": large, "judge": judge}
    answered, _ = run(plan("cascade", members), models, [0, 1])
    assert scores(answered) == [[0, 1], [0.6, 0.4]]
    assert judge.asked[0][0] == {
        "input": 0, "member": "small",
        "answer": {"probabilities": [0.95, 0.05], "classes": ["no", "yes"]},
    }  # fmt: skip


def test_where_the_last_of_a_cascade_fails_the_surest_so_far_is_taken() -> None:
    one, two = says((0.6, 0.4), (0.3, 0.7)), says((0.3, 0.7), (0.4, 0.6))
    models = {"one": one, "two": two, "three": failing()}
    wanted = plan("cascade", [member(name) for name in models], on_failure="skip")
    answered, _ = run(wanted, models, [0, 1])
    assert scores(answered) == [[0.3, 0.7], [0.3, 0.7]]
    broken = {"one": failing(), "two": failing()}
    with pytest.raises(ReactorError, match="no member of the cascade answered"):
        run(plan("cascade", [member("one"), member("two")], on_failure="skip"), broken, [0])


def test_a_cascade_of_members_that_are_never_sure_is_refused() -> None:
    texts = Model(lambda inputs: Outputs(texts=("hello",) * len(inputs)))
    with pytest.raises(OutputError, match="does not say how sure it is"):
        run(plan("cascade", [member("a"), member("b")]), {"a": texts, "b": texts}, [0])


CHOICES = {"first": [[0.6, 0.4]], "best": [[0.1, 0.9]], "all": None}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_parallel_reactor_gives_all_answers_and_the_one_that_is_chosen(choice: str) -> None:
    models = {"a": says((0.1, 0.9)), "b": says((0.6, 0.4))}
    members = [member("a"), member("b", role="primary")]
    answered, _ = run(plan("parallel", members, choose=choice), models, [0])
    assert list(answered.side_by_side) == ["a", "b"]
    assert (scores(answered) if answered.outputs else None) == CHOICES[choice]


def test_the_best_is_by_the_validators_where_there_are_some() -> None:
    models = {"a": says((0.1, 0.9), (0.1, 0.9)), "b": says((0.6, 0.4), (0.6, 0.4))}

    def judge(asked: Sequence[Any]) -> Outputs:
        good = [float((each["member"] == "b") == (each["input"] == 0)) for each in asked]
        return Outputs(scores=np.array(good)[:, None], meaning="scores")

    members = [member("a"), member("b"), member("v", role="validator")]
    wanted = plan("parallel", members, choose="best")
    answered, _ = run(wanted, {**models, "v": Model(judge)}, [0, 1])
    assert scores(answered) == [[0.6, 0.4], [0.1, 0.9]]


def test_the_fastest_is_not_kept_waiting_by_the_others() -> None:
    released = threading.Event()
    slow = Model(lambda inputs: released.wait(30))
    models = {"a": slow, "b": says((0.6, 0.4)), "c": failing()}
    wanted = plan("parallel", [member(name) for name in models], choose="fastest")
    started = time.monotonic()
    answered, _ = run(wanted, models, [0])
    released.set()
    assert time.monotonic() - started < 5
    assert scores(answered) == [[0.6, 0.4]]
    with pytest.raises(ReactorError, match="no member answered"):
        run(plan("parallel", [member("c")], choose="fastest"), {"c": failing()}, [0])


def test_what_feeds_into_a_member_is_told_to_it() -> None:
    tail = Model(
        lambda asked: Outputs(
            scores=np.array([each["answers"][0]["answer"]["probabilities"] for each in asked])
        )
    )
    models = {"head": says((0.2, 0.8), (0.9, 0.1)), "tail": tail}
    edges = (edge("head", "feeds_into", "tail", 0.5),)
    members = [member("tail"), member("head")]
    answered, _ = run(plan("hierarchical", members, interactions=edges), models, [0, {"input": 1}])
    assert scores(answered) == [[0.2, 0.8], [0.9, 0.1]]
    (asked,) = tail.asked
    assert asked[1]["input"] == 1
    assert asked[0]["answers"][0]["model"] == "head"


def test_what_augments_a_member_is_fused_into_its_answer() -> None:
    models = {"main": says((1, 0)), "helper": says((0, 1))}
    edges = (edge("helper", "augments", "main", 0.25),)
    members = [member("main", weight=7.0), member("helper")]
    answered, _ = run(plan("hierarchical", members, interactions=edges), models, [0])
    assert scores(answered) == [[0.8, 0.2]]


def test_who_corrects_answers_in_the_place_of_the_other() -> None:
    fixed = Model(
        lambda asked: Outputs(
            scores=np.array([each["answer"]["probabilities"][::-1] for each in asked]),
            classes=("no", "yes"),
        )
    )
    models = {"main": says((1, 0)), "editor": fixed}
    for weight, expected in ((1.0, [[0, 1]]), (0.75, [[0.25, 0.75]])):
        edges = (edge("editor", "corrects", "main", weight),)
        members = [member("main"), member("editor", role="validator")]
        answered, _ = run(plan("hierarchical", members, interactions=edges), models, [0])
        assert scores(answered) == expected


def test_who_validates_decides_how_much_an_answer_counts_input_by_input() -> None:
    models = {
        "a": says((1, 0), (1, 0)),
        "b": says((0, 1), (0, 1)),
        "judge": Model(
            lambda asked: Outputs(
                scores=np.array([[0.0 if each["input"] else 1.0] for each in asked]),
                meaning="scores",
            )
        ),
    }
    edges = (edge("judge", "validates", "a", 0.5),)
    members = [member("a"), member("b"), member("judge", role="validator")]
    wanted = plan("hierarchical", members, interactions=edges)
    answered, _ = run(wanted, models, [0, 1])
    assert scores(answered) == [[0.5, 0.5], [round(1 / 3, 9), round(2 / 3, 9)]]
    alone = [scores(run(wanted, models, [each])[0])[0] for each in (0, 1)]
    assert alone == scores(answered)


def test_a_hierarchy_goes_on_without_a_member_that_failed() -> None:
    models = {"head": failing(), "tail": says((0.2, 0.8)), "other": says((0.4, 0.6))}
    edges = (edge("head", "feeds_into", "tail"), edge("other", "augments", "head"))
    members = [member(name) for name in models]
    wanted = plan("hierarchical", members, interactions=edges, on_failure="skip")
    answered, _ = run(wanted, models, [0])
    assert scores(answered) == [[0.3, 0.7]]


def test_the_fastest_answers_everything_or_nothing() -> None:
    models = {"a": failing(), "b": says((0.2, 0.8), (0.2, 0.8))}
    members = [member("a"), member("b", role="specialist", domains=("law",))]
    inputs = [{"input": 0, "domain": "law"}, {"input": 1}]
    with pytest.raises(ReactorError, match="0 of 2 members answered to input 1"):
        run(plan("parallel", members, choose="fastest"), models, inputs)


def test_a_member_that_leaves_its_thread_in_any_way_has_failed() -> None:
    def answer(inputs: Sequence[Any]) -> Outputs:
        raise SystemExit(3)

    models = {"a": says((1, 0)), "b": Model(answer)}
    answered, running = run(
        plan("ensemble", [member("a"), member("b")], on_failure="skip"), models, [0]
    )
    assert scores(answered) == [[1, 0]]
    assert "SystemExit" in str(running.asked[1].error)


def test_the_last_of_a_cascade_need_not_say_how_sure_it_is() -> None:
    small = says((0.6, 0.4), confidence=[0.1])
    large = Model(lambda inputs: Outputs(scores=np.array([[3.0, 4.0]]), meaning="scores"))
    wanted = plan("cascade", [member("small"), member("large")])
    answered, _ = run(wanted, {"small": small, "large": large}, [0])
    assert scores(answered) == [[3, 4]]


def test_who_stood_in_for_another_in_a_cascade_is_not_asked_again() -> None:
    large = says((0.6, 0.4), (0.3, 0.7))
    members = [member("a"), member("b"), member("c")]
    wanted = plan("cascade", members, on_failure="fallback", fallback="b")
    models = {"a": failing(), "b": large, "c": says((1, 0), (0, 1))}
    answered, running = run(wanted, models, [0, 1])
    assert scores(answered) == [[1, 0], [0, 1]]
    assert large.asked == [[0, 1]]
    assert sum(each.costs.sum() for each in running.asked if each.outputs) == 4


JUDGES: dict[str, Callable[[Any], float]] = {"nothing is good": lambda _: 0.0, "some": float}


@pytest.mark.parametrize("judge", JUDGES)
def test_hierarchies_answer_a_batch_as_they_answer_each_input(judge: str) -> None:
    numbers = np.random.default_rng(8)
    table = {name: numbers.dirichlet([1, 1], size=4) for name in "abcd"}
    tail = Model(
        lambda asked: Outputs(
            scores=np.array(
                [
                    each["answers"][0]["answer"]["probabilities"][::-1]
                    if "answers" in each
                    else table["c"][each["input"]]
                    for each in asked
                ]
            ),
            classes=("no", "yes"),
        )
    )
    value = JUDGES[judge]
    models = {
        **{name: says(*rows) for name, rows in table.items() if name != "c"},
        "c": tail,
        "judge": Model(
            lambda asked: Outputs(
                scores=np.array([[value(each["input"]["input"] % 2)] for each in asked]),
                meaning="scores",
            )
        ),
        "editor": Model(
            lambda asked: Outputs(
                scores=np.array([each["answer"]["probabilities"][::-1] for each in asked]),
                classes=("no", "yes"),
            )
        ),
    }
    members = [
        member("a", role="specialist", domains=("law",)), member("b", weight=2.0), member("c"),
        member("d", role="specialist", domains=("law", "art")),
        member("judge", role="validator"),
        member("editor", role="specialist", domains=("art",)),
    ]  # fmt: skip
    edges = (
        edge("a", "feeds_into", "c"), edge("b", "augments", "d", 0.5),
        edge("judge", "validates", "c"), edge("editor", "corrects", "c", 0.5),
    )  # fmt: skip
    wanted = plan("hierarchical", members, interactions=edges)
    domains = ("law", "art", "war", "law")
    inputs = [{"input": number, "domain": domain} for number, domain in enumerate(domains)]
    whole, _ = run(wanted, models, inputs)
    alone = [scores(run(wanted, models, [each])[0])[0] for each in inputs]
    assert scores(whole) == alone


def test_a_correction_by_halves_is_no_judgement_twice() -> None:
    models = {
        "a": says((1, 0)),
        "judge": Model(lambda asked: Outputs(scores=np.array([[0.2]]), meaning="scores")),
        "editor": Model(lambda asked: Outputs(scores=np.array([[0.0, 1]]), classes=("no", "yes"))),
    }
    edges = (edge("judge", "validates", "a"), edge("editor", "corrects", "a", 0.5))
    members = [member("a"), *(member(name, role="validator") for name in ("judge", "editor"))]
    answered, _ = run(plan("hierarchical", members, interactions=edges), models, [0])
    assert scores(answered) == [[0.5, 0.5]]


def test_who_looks_back_is_written_down_with_the_inputs_that_it_is_about() -> None:
    models = {
        "a": says((1, 0), (1, 0), (0, 1)),
        "judge": Model(lambda asked: Outputs(scores=np.ones((len(asked), 1)), meaning="scores")),
    }
    members = [
        member("a", role="specialist", domains=("law",)), member("judge", role="validator"),
        member("b"),
    ]  # fmt: skip
    models["b"] = models["a"]
    inputs = [{"input": 0}, {"input": 1, "domain": "law"}, {"input": 2, "domain": "law"}]
    edges = (edge("judge", "validates", "a"),)
    _, running = run(plan("hierarchical", members, interactions=edges), models, inputs)
    found = {each.member.model: each.indexes for each in running.asked}
    assert found == {"a": (1, 2), "b": (0, 1, 2), "judge": (1, 2)}
