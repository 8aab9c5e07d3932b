"""What OpenAI's own client gets from a server of reactors."""

from __future__ import annotations

import json
import time
from uuid import UUID

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.serving.protocol import pieces
from tests.serving.projects import MEMBERS, SECRET

HELLO = [{"role": "user", "content": "hello"}]


def test_a_chat_is_answered_with_the_fused_text(site):
    answer = site.client().chat.completions.create(model="echo", messages=HELLO)
    assert answer.choices[0].message.content == "you said hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.model == "echo"
    assert answer.usage.total_tokens == 7


def test_an_answer_says_what_was_recorded(site):
    said = site.client().chat.completions.create(model="echo", messages=HELLO).arc_halo
    assert said["left_out"] == {}
    assert said["cost"] == 1.0
    rows = site.rows("SELECT id, status, tenant, input FROM fusion_operations")
    assert rows == [
        (
            UUID(said["operation"]),
            "completed",
            "acme",
            [{"input": "hello", "messages": HELLO}],
        )
    ]


def test_completions_take_a_batch(site):
    answer = site.client().completions.create(model="echo", prompt=["a", "b"])
    assert [(each.index, each.text) for each in answer.choices] == [
        (0, "you said a"),
        (1, "you said b"),
    ]
    assert site.rows("SELECT input, input_count FROM fusion_operations") == [(["a", "b"], 2)]


def test_where_there_is_no_text_the_label_is_said(site):
    answer = site.client().completions.create(model="coin", prompt="toss")
    assert answer.choices[0].text == "heads"
    assert answer.usage.total_tokens == 0


def test_where_nothing_is_decided_the_scores_are_said(site):
    answer = site.client().completions.create(model="wordless", prompt="x")
    assert json.loads(answer.choices[0].text) == [1.0, 1.0]


@pytest.mark.parametrize("content", ["hello " * 40, "", "ä\n\nö"])
def test_a_stream_comes_to_the_same_text(site, content):
    messages = [{"role": "user", "content": content}]
    stream = site.client().chat.completions.create(
        model="echo", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    events = list(stream)
    choices = [each.choices[0] for each in events if each.choices]
    assert "".join(each.delta.content or "" for each in choices) == f"you said {content}"
    assert choices[0].delta.role == "assistant"
    assert [each.finish_reason for each in choices if each.finish_reason] == ["stop"]
    assert events[-1].usage.total_tokens == 7
    assert UUID(events[-2].arc_halo["operation"])
    assert len({each.id for each in events}) == 1


def test_a_stream_of_completions_has_each_text_whole(site):
    texts = ["", ""]
    stream = site.client().completions.create(model="echo", prompt=["a" * 99, "b"], stream=True)
    for event in stream:
        texts[event.choices[0].index] += event.choices[0].text
    assert texts == [f"you said {'a' * 99}", "you said b"]


def test_a_stream_ends_as_openais_do(site):
    body = {"model": "echo", "messages": HELLO, "stream": True}
    response = site.post(json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")


def test_a_text_that_is_written_token_by_token_is_streamed_as_it_is_written(site):
    stream = site.client().completions.create(model="letters", prompt="c", stream=True)
    texts, times = [], []
    for event in stream:
        texts.append(event.choices[0].text)
        times.append(time.monotonic())
    assert "".join(texts) == "defghijklmno"
    assert times[-1] - times[0] > 5 * 0.03
    whole = site.client().completions.create(model="letters", prompt="c")
    assert whole.choices[0].text == "defghijklmno"
    rows = site.rows("SELECT status, tenant, output ->> 'texts' FROM fusion_operations")
    assert rows == [("completed", "acme", '["defghijklmno"]')] * 2


LETTERS = [
    ({"prompt": "c"}, "defghijklmno", "length", 1, 12),
    ({"prompt": "v"}, "wxyz", "stop", 1, 4),
]


@pytest.mark.parametrize(("asked", "text", "reason", "prompt", "completion"), LETTERS)
def test_why_a_text_ended_and_its_tokens_are_told(site, asked, text, reason, prompt, completion):
    client = site.client()
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    whole = client.completions.create(model="letters", **asked)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (text, reason)
    assert whole.usage.model_dump(include=set(usage)) == usage
    events = list(
        client.completions.create(
            model="letters", stream=True, stream_options={"include_usage": True}, **asked
        )
    )
    *before, last = events
    assert [each.choices[0].finish_reason for each in before] == [None] * (len(before) - 1) + [
        reason
    ]
    assert all(each.usage is None for each in before)
    assert (last.choices, last.usage.model_dump(include=set(usage))) == ([], usage)
    assert before[-1].arc_halo["operation"]


def test_usage_is_streamed_only_where_it_is_wanted(site):
    for model in ("letters", "echo"):
        body = {"model": model, "prompt": "c", "stream": True}
        assert '"usage"' not in site.post("/v1/completions", json=body).text
        asked = site.post("/v1/completions", json={**body, "stream_options": {}})
        assert '"usage"' not in asked.text


def test_who_stops_listening_ends_the_run_and_the_next_one_is_answered(site):
    stream = site.client().completions.create(model="letters", prompt="a", stream=True)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 10
    query = "SELECT status FROM fusion_operations"
    while site.rows(query) != [("failed",)] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert site.rows(query) == [("failed",)]
    assert site.service.turns.borrowed_tokens == 0
    assert site.client().completions.create(model="letters", prompt="a").choices[0].text


def test_a_stream_that_cannot_go_on_says_so_and_names_no_secret(site):
    response = site.post(
        "/v1/completions", json={"model": "letters", "prompt": "zab", "stream": True}
    )
    assert response.status_code == 200
    last = response.text.rstrip().rpartition("data: ")[2]
    error = json.loads(last)["error"]
    assert error["type"] == "server_error"
    assert "letters@1" in error["message"]
    assert SECRET not in response.text
    failing = site.post(
        "/v1/completions", json={"model": "letters", "prompt": "zabc", "stream": True}
    )
    assert failing.status_code == 502
    assert SECRET not in failing.text


@given(st.text())
def test_pieces_are_the_text(text):
    assert "".join(pieces(text)) == text
    assert all(piece and (len(piece) <= 64 or piece[64:].isspace()) for piece in pieces(text))


def test_models_are_reactors(site):
    client = site.client()
    names = [model.id for model in client.models.list()]
    assert names == ["broken", "coin", "echo", "letters", "many", "slow", "wordless"]
    assert client.models.retrieve("coin").id == "coin"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("dice")


def test_members_that_fail_are_named_and_counted(site):
    client = site.client()
    failed = 0
    for number in range(20):
        answer = client.completions.create(model="many", prompt=str(number))
        assert answer.choices[0].text == "heads"
        failed += len(answer.arc_halo["left_out"])
    assert 0 < failed < 20 * MEMBERS / 4
    text = site.get("/metrics").text
    lines = [each for each in text.splitlines() if each.startswith("arc_halo_members_failed_total")]
    assert sum(int(each.rpartition(" ")[2]) for each in lines) == failed


def test_metrics_count_requests_by_reactor_and_status(site):
    client = site.client()
    client.completions.create(model="echo", prompt="x")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="no\nsuch", prompt="x")
    response = site.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = response.text.splitlines()
    assert 'arc_halo_requests_total{reactor="echo",status="200"} 1' in lines
    assert 'arc_halo_requests_total{reactor="",status="404"} 1' in lines
    assert 'arc_halo_request_seconds_bucket{reactor="echo",le="+Inf"} 1' in lines
    assert 'arc_halo_request_seconds_count{reactor="echo"} 1' in lines
    assert "arc_halo_requests_in_flight 0" in lines


def test_it_says_that_it_is_there_to_anybody(site):
    assert httpx.get(f"{site.url}/healthz").json() == {"status": "ok"}


# What is refused


def test_an_unknown_model_is_not_found(site):
    with pytest.raises(openai.NotFoundError, match="did you mean 'echo'") as told:
        site.client().chat.completions.create(model="ecko", messages=HELLO)
    assert told.value.code == "model_not_found"


def test_a_reactor_that_fails_is_a_bad_gateway_and_names_no_secret(site):
    with pytest.raises(openai.APIStatusError) as told:
        site.client().chat.completions.create(model="broken", messages=HELLO)
    assert told.value.status_code == 502
    assert told.value.code == "AH075"
    assert "broken@1: RuntimeError: refused: ***" in str(told.value)
    assert SECRET not in told.value.response.text
    assert site.rows("SELECT status, tenant FROM fusion_operations") == [("failed", "acme")]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("chat/completions", b"{", "no JSON"),
        ("chat/completions", b"[" * 100_000, "no JSON"),
        ("chat/completions", b"[]", "no JSON object"),
        ("chat/completions", b'{"model": "echo", "x": NaN}', "no JSON"),
        ("chat/completions", b'{"model": "echo", "x": 1e999}', "no JSON"),
        ("chat/completions", b'{"model": "echo", "x": "\\u0000"}', "NUL"),
        ("chat/completions", b"{}", "`model` is missing"),
        ("chat/completions", b'{"model": "echo"}', "`messages`"),
        ("chat/completions", b'{"model": "echo", "messages": []}', "`messages`"),
        ("chat/completions", b'{"model": "echo", "messages": ["x"]}', "`messages[0]`"),
        ("completions", b'{"model": "echo", "prompt": [1, 2]}', "`prompt`"),
        ("completions", b'{"model": "echo", "prompt": "x", "n": 2}', "`n` is not offered"),
        ("completions", b'{"model": "echo", "prompt": "x", "logprobs": true}', "`logprobs`"),
        ("chat/completions", b'{"model": "echo", "tools": [{}]}', "`tools`"),
        ("completions", b'{"model": "echo", "prompt": "x", "stream": "yes"}', "`stream`"),
        (
            "completions",
            b'{"model": "echo", "prompt": "x", "stream_options": {"include_usage": true}}',
            "only for `stream: true`",
        ),
        (
            "completions",
            b'{"model": "echo", "prompt": "x", "stream": true, "stream_options": [1]}',
            "`stream_options` is no object",
        ),
        (
            "completions",
            b'{"model": "echo", "prompt": "x", "x": %s}' % (b"[" * 99 + b"]" * 99),
            "64 deep",
        ),
    ],
    ids=range(18),
)
def test_what_makes_no_sense_is_refused_and_not_asked(site, path, body, message):
    headers = {"Content-Type": "application/json"}
    response = site.post(f"/v1/{path}", content=body, headers=headers)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert site.rows("SELECT count(*) FROM fusion_operations") == [(0,)]


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(("prompt", "told"), [("", "an empty prompt"), ("a" * 41, "has 41 tokens")])
def test_a_question_that_no_member_can_take_is_a_bad_request(site, prompt, told, is_streamed):
    body = {"model": "letters", "prompt": prompt, "stream": is_streamed}
    response = site.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert told in response.json()["error"]["message"]
    assert response.json()["error"]["code"] == "AH007"


TEXT, IMAGE = {"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}


@pytest.mark.parametrize(
    ("message", "param", "told"),
    [
        ({"role": 1, "content": "x"}, "messages[1]", "no {role, content}"),
        ({"role": "wizard", "content": "x"}, "messages[1].role", "known are system"),
        ({"role": "user"}, "messages[1].content", "neither a text"),
        ({"role": "user", "content": 3}, "messages[1].content", "neither a text"),
        ({"role": "user", "content": []}, "messages[1].content", "neither a text"),
        ({"role": "user", "content": [TEXT, IMAGE]}, "messages[1].content[1]", "'image_url'"),
        ({"role": "user", "content": [{**TEXT, "text": 3}]}, "messages[1].content[0]", "no {type"),
        ({"role": "user", "content": ["x"]}, "messages[1].content[0]", "no {type"),
    ],
    ids=range(8),
)
def test_messages_that_are_no_texts_are_refused_by_their_place(site, message, param, told):
    response = site.post(json={"model": "echo", "messages": [*HELLO, message]})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert told in error["message"]


def test_parts_of_a_message_that_are_texts_are_one_text(site):
    messages = [
        {"role": "assistant", "content": None},
        {"role": "user", "content": [TEXT, {**TEXT, "text": "b"}]},
    ]
    answer = site.client().chat.completions.create(model="echo", messages=messages)
    assert answer.choices[0].message.content == "you said ab"


def test_what_changes_nothing_may_be_said(site):
    body = {"model": "echo", "messages": HELLO, "n": 1, "temperature": 0.2, "tools": []}
    assert site.post(json={**body, "response_format": {"type": "text"}}).status_code == 200


def test_a_body_of_another_type_is_refused(site):
    response = site.post(content=b"{}", headers={"Content-Type": "text/plain"})
    assert response.status_code == 415


def test_a_path_that_there_is_not_is_told_in_openais_form(site):
    assert site.get("/v1/nothing").json()["error"]["message"] == "Not Found"
    assert site.get("/v1/completions").status_code == 405
