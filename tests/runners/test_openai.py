"""The runner `openai`, against a real HTTP server on this machine."""

from __future__ import annotations

import base64
import json
import logging
import math
import re
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from starlette.responses import JSONResponse, RedirectResponse, Response

from arc_halo.errors import MemberError, PluginError
from arc_halo.runners import _requests
from arc_halo.runners.openai import open_openai
from tests.runners.services import SECRET


@pytest.fixture
def open_service(service, make_context):
    """Opens the runner on the service."""

    def opened(*, timeout_seconds=None, context=None, **params):
        params = {"url": service.url, "model": "poet", **params}
        return open_openai(context or make_context(timeout_seconds=timeout_seconds), **params)

    return opened


@pytest.fixture
def quick(monkeypatch):
    """Pauses between tries as short as a test wants them."""
    monkeypatch.setattr(_requests, "FIRST_PAUSE_SECONDS", 0.01)


def said(status, text="no", **headers):
    return lambda: JSONResponse({"error": {"message": text}}, status, headers=headers)


def test_a_text_is_asked_as_the_users_message(service, open_service):
    with open_service(system="Be brief.", max_tokens=5, temperature=0.5) as running:
        outputs = running.answer(["hello"])
    assert outputs.texts == ("re: hello",)
    assert service.seen[0]["path"] == "/v1/chat/completions"
    assert service.seen[0]["body"] == {
        "model": "poet",
        "max_tokens": 5,
        "temperature": 0.5,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hello"},
        ],
    }


def test_what_is_not_set_is_not_sent(service, open_service):
    with open_service() as running:
        running.answer(["hello"])
    assert service.seen[0]["body"].keys() == {"model", "messages"}
    assert "authorization" not in service.seen[0]["headers"]


def test_messages_prompt_and_input_are_questions(service, open_service):
    chat = [{"role": "system", "content": "x"}, {"role": "user", "content": "a"}]
    with open_service(system="not this one") as running:
        texts = running.answer([{"messages": chat}, {"prompt": "b"}, {"input": "c"}]).texts
    assert texts == ("re: a", "re: b", "re: c")
    assert chat in [each["body"]["messages"] for each in service.seen]


def test_what_is_no_question_is_refused(open_service):
    with open_service() as running:
        for given in (3, {"id": 1}, {"messages": []}, {"messages": ["hi"]}, None):
            with pytest.raises(MemberError, match=r"question|messages"):
                running.answer([given])


def test_answers_of_other_models_stand_below_the_question(service, open_service):
    answers = [
        {"model": "scout@1", "kind": "feeds_into", "answer": "Paris"},
        {"model": "guess@1", "kind": "augments", "answer": {"label": 3}},
    ]
    below = (
        "Answers of other models:\n\n[scout@1, feeds_into]\nParis\n\n"
        '[guess@1, augments]\n{"label": 3}'
    )
    last = {"messages": [{"role": "assistant", "content": "so?"}], "answers": answers}
    with open_service() as running:
        running.answer([{"input": "Where?", "answers": answers}])
        running.answer([last])
    first, second = (each["body"]["messages"] for each in service.seen)
    assert first == [{"role": "user", "content": f"Where?\n\n{below}"}]
    assert second[-1] == {"role": "user", "content": below}
    assert len(second) == 2


def test_the_other_interface_takes_one_text(service, open_service):
    chat = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}
    with open_service(api="completions", system="S") as running:
        running.answer(["hello"])
        running.answer([chat])
    assert [each["body"]["prompt"] for each in service.seen] == [
        "S\n\nhello",
        "system: S\n\nuser: hi\n\nassistant:",
    ]
    assert service.seen[0]["path"] == "/v1/completions"


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_confidence_is_the_mean_tokens_probability(service, open_service, api):
    service.logprobs = [-0.1, -0.3]
    with open_service(api=api, logprobs=True) as running:
        outputs = running.answer(["a", "b"])
    assert outputs.confidence == pytest.approx([math.exp(-0.2)] * 2)
    outputs.check(2)


def test_without_logprobs_there_is_no_confidence(open_service):
    with open_service(logprobs=True) as running:
        assert running.answer(["a"]).confidence is None


def test_tokens_are_counted_over_the_batch(open_service):
    with open_service() as running:
        details = running.answer(["a", "b", "c"]).details
    usage = {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}
    assert details == {"usage": usage, "finish_reason": ["length"] * 3}


def test_an_empty_batch_asks_nobody(service, open_service):
    with open_service() as running:
        assert running.answer([]).texts == ()
    assert service.seen == []


# When it is asked again


@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
def test_what_may_pass_is_tried_again(service, open_service, quick, status):
    service.script = [said(status), said(status)]
    with open_service(retries=2) as running:
        assert running.answer(["a"]).texts == ("re: a",)
    assert len(service.seen) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_will_not_pass_is_not_tried_again(service, open_service, status):
    service.script = [said(status, "this is wrong")]
    with open_service() as running, pytest.raises(MemberError, match=f"HTTP {status}: this is"):
        running.answer(["a"])
    assert len(service.seen) == 1


def test_after_the_last_try_it_says_what_the_service_said(service, open_service, quick):
    service.script = [said(500), said(500, "still broken")]
    with open_service(retries=1) as running, pytest.raises(MemberError, match="still broken"):
        running.answer(["a"])
    assert len(service.seen) == 2


def test_retry_after_is_honoured(service, open_service, quick):
    service.script = [said(429, **{"Retry-After": "1"})]
    with open_service() as running:
        running.answer(["a"])
    assert service.times[1] - service.times[0] >= 1


def test_retry_after_may_be_a_date(service, open_service, quick):
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=2.5), usegmt=True)
    service.script = [said(503, **{"Retry-After": at})]
    with open_service() as running:
        running.answer(["a"])
    assert service.times[1] - service.times[0] >= 1


def test_nobody_waits_for_an_hour(service, open_service):
    service.script = [said(429, "later", **{"Retry-After": "3600"})]
    started = time.monotonic()
    with open_service() as running, pytest.raises(MemberError, match="later"):
        running.answer(["a"])
    assert time.monotonic() - started < 5


def test_nobody_waits_longer_than_the_reactor_does(service, open_service):
    service.script = [said(429, "later", **{"Retry-After": "20"})]
    with (
        open_service(timeout_seconds=5) as running,
        pytest.raises(MemberError, match="HTTP 429: later"),
    ):
        running.answer(["a"])
    assert len(service.seen) == 1


def test_pauses_grow_and_are_never_longer_than_the_longest():
    for attempt in range(12):
        longest = min(_requests.LONGEST_PAUSE_SECONDS, 0.5 * 2**attempt)
        assert longest / 2 <= _requests._pause(attempt) <= longest


def test_a_lost_connection_is_tried_again(make_context, quick):
    with open_openai(
        make_context(), url="http://127.0.0.1:1", model="poet", retries=1
    ) as running, pytest.raises(MemberError, match="ConnectError"):  # fmt: skip
        running.answer(["a"])


def test_a_slow_answer_is_a_failure(service, open_service):
    service.delay = 5
    started = time.monotonic()
    with open_service(timeout=0.2, retries=0) as running, pytest.raises(MemberError, match=r"0\.2"):
        running.answer(["a"])
    assert time.monotonic() - started < 3


# Limits


def test_no_more_requests_than_allowed_are_under_way_at_once(service, open_service):
    service.delay = 0.02
    texts = {}

    def ask(name):
        texts[name] = running.answer([f"{name}{n}" for n in range(10)]).texts

    with open_service(concurrency=3) as running:
        threads = [threading.Thread(target=ask, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == {name: tuple(f"re: {name}{n}" for n in range(10)) for name in "abcd"}
    assert service.most_at_once == 3


def test_a_batch_is_asked_at_once(service, open_service):
    service.delay = 0.3
    started = time.monotonic()
    with open_service(concurrency=8) as running:
        running.answer(list("abcdefgh"))
    assert time.monotonic() - started < 1.5
    assert service.most_at_once == 8


def test_after_a_failure_the_rest_of_the_batch_is_not_asked(service, open_service):
    service.script = [said(400)]
    service.delay = 0.05
    with open_service(concurrency=1) as running, pytest.raises(MemberError):
        running.answer([str(n) for n in range(50)])
    assert len(service.seen) < 5


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: Response("<html>"), "no JSON object"),
        (lambda: JSONResponse([1]), "no JSON object"),
        (lambda: JSONResponse({"choices": []}), "no text"),
        (lambda: JSONResponse({"choices": [{"message": {"content": None}}]}), "no text"),
        (lambda: Response(b"x" * (_requests.MAX_ANSWER_BYTES + 1)), "more than"),
    ],
    ids=["html", "a list", "no choices", "no content", "too large"],
)
def test_what_is_no_answer_is_a_failure(service, open_service, answer, message):
    service.script = [answer]
    with open_service() as running, pytest.raises(MemberError, match=message):
        running.answer(["a"])


# Hosts and keys


def test_a_host_that_is_not_allowed_is_never_asked(service, make_context):
    with (
        pytest.raises(MemberError, match=r"the host 127\.0\.0\.1 is not allowed here"),
        open_openai(make_context(hosts=("localhost",)), url=service.url, model="poet"),
    ):
        pass
    assert service.seen == []


def test_redirects_are_not_followed(service, open_service):
    service.script = [lambda: RedirectResponse("http://elsewhere.example/v1", 307)]
    with (
        open_service(key_env="THE_KEY") as running,
        pytest.raises(MemberError, match=r"redirects to elsewhere\.example"),
    ):
        running.answer(["a"])
    assert len(service.seen) == 1


@pytest.mark.parametrize("said_as", [{"key": {"env": "THE_KEY"}}, {"key_env": "THE_KEY"}])
def test_the_key_goes_along(service, open_service, said_as):
    with open_service(**said_as) as running:
        running.answer(["a"])
    assert service.seen[0]["headers"]["authorization"] == f"Bearer {SECRET}"


def test_a_key_that_is_not_allowed_is_not_read(open_service, make_context):
    with (
        pytest.raises(MemberError, match="the secret THE_KEY is not allowed here"),
        open_service(context=make_context(secrets=()), key_env="THE_KEY"),
    ):
        pass


def test_one_key_is_enough(open_service):
    with (
        pytest.raises(MemberError, match="both"),
        open_service(key_env="THE_KEY", key={"env": "THE_KEY"}),
    ):
        pass


@pytest.mark.parametrize("value", ["", " ", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_is_none_is_refused_without_showing_it(open_service, make_context, value):
    with (
        pytest.raises(MemberError, match="THE_KEY is no key") as refused,
        open_service(context=make_context(value=value), key_env="THE_KEY"),
    ):
        pass
    assert not value.strip() or value not in str(refused.value)


@pytest.mark.parametrize(
    "answer",
    [
        lambda: JSONResponse({"error": {"message": f"bad key: Bearer {SECRET}"}}, 401),
        lambda: JSONResponse({"error": f"{SECRET}{SECRET}"}, 400),
        lambda: Response(f"{'x' * 290}{SECRET}", 500),
        lambda: Response(json.dumps({"headers": {"authorization": f"Bearer {SECRET}"}}), 500),
        lambda: RedirectResponse(f"http://{SECRET}/v1"),
    ],
    ids=["401", "text", "cut", "echo", "redirect"],
)
def test_a_key_that_the_service_echoes_is_in_no_error_and_no_log(
    service, open_service, caplog, quick, answer
):
    caplog.set_level(logging.DEBUG)
    service.script = [answer, answer]
    with open_service(key_env="THE_KEY", retries=1) as running, pytest.raises(MemberError) as told:
        running.answer(["a"])
    chain = []
    error = told.value
    while error is not None:
        chain += [repr(error), str(error), str(getattr(error, "hint", ""))]
        error = error.__cause__ or error.__context__
    for text in (*chain, caplog.text, repr(running)):
        assert SECRET not in text
        assert SECRET[:8] not in text
        assert base64.b64encode(SECRET.encode()).decode() not in text


def test_a_key_in_an_answer_is_covered(service, open_service):
    text = f"your key is {SECRET}"
    service.script = [lambda: JSONResponse({"choices": [{"message": {"content": text}}]})]
    with open_service(key_env="THE_KEY") as running:
        assert running.answer(["a"]).texts == ("your key is ***",)


def test_params_say_what_they_are():
    from arc_halo.runners.openai import PARAMS

    assert all(each["description"] for each in PARAMS["properties"].values())
    url = PARAMS["properties"]["url"]["pattern"]
    assert re.match(url, "https://api.openai.com/v1")
    assert not re.match(url, "https://user:password@api.openai.com/v1")


def test_without_httpx_it_says_what_to_install(open_service, monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(PluginError, match="needs the package httpx") as told, open_service():
        pass
    assert told.value.hint == "pip install 'arc-halo[openai]'"
