"""A store that cannot be had is one clear error, soon, and without any secret."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from datetime import timedelta

import pytest

from arc_halo.bodies import bucket as buckets
from arc_halo.bodies.object import open_url
from arc_halo.errors import BodyStoreError

BODY = {bytes(range(32)): b"body"}
FORBIDDEN = "<Error><Code>SignatureDoesNotMatch</Code><Message>{}</Message></Error>"
URL = "s3://somewhere/prefix"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No patience with servers that are dead, so that the tests are quick."""
    monkeypatch.setattr(buckets, "RETRIES", 1)
    monkeypatch.setattr(buckets, "SILENCE_TIMEOUT", timedelta(milliseconds=300))


def refused(url: str) -> BodyStoreError:
    with pytest.raises(BodyStoreError) as caught, open_url(url):
        pass
    return checked(caught.value)


def checked(error: BodyStoreError) -> BodyStoreError:
    """`error`, which says what to do, and shows no secret of the environment anywhere."""
    assert error.error_code == "AH065"
    assert error.hint
    shown = "".join([error.hint, *traceback.format_exception(error)])
    one: BaseException | None = error
    while one is not None:
        shown += f"{one} {one!r}"
        one = one.__cause__ or one.__context__
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert os.environ[name] not in shown
    return error


def test_an_absent_bucket_is_told(s3, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    error = refused("s3://absent/prefix")
    assert str(error) == "s3://absent/prefix: NoSuchBucket: The specified bucket does not exist"
    assert error.hint == "make the bucket first, or correct `storage.bodies.url`"


def test_a_bucket_that_goes_away_holds_no_missing_bodies(bucket, s3) -> None:
    with open_url(bucket.url) as bodies:
        s3.remove_bucket(bucket.url)
        for call in (
            lambda: bodies.put(BODY),
            lambda: bodies.get(list(BODY)),
            lambda: bodies.delete(list(BODY)),
            lambda: list(bodies.pages(older_than=timedelta(0))),
            lambda: bodies.claim("mine"),
        ):
            with pytest.raises(BodyStoreError, match="NoSuchBucket") as caught:
                call()
            checked(caught.value)


def test_wrong_credentials_are_told(bucket, s3) -> None:
    with open_url(bucket.url) as bodies:
        s3.check_keys(after="0")
        try:
            error = refused(bucket.url)
            with pytest.raises(BodyStoreError, match="InvalidAccessKeyId") as caught:
                bodies.put(BODY)
        finally:
            s3.check_keys(after="inf")
    checked(caught.value)
    assert "InvalidAccessKeyId" in str(error)
    assert "AWS_SECRET_ACCESS_KEY" in str(error.hint)


def test_a_server_that_repeats_the_secret_is_not_quoted(answering) -> None:
    secret, key_id = os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_ACCESS_KEY_ID"]
    answering(403, FORBIDDEN.format(f"{key_id} with {secret} does not sign that"))
    error = refused(URL)
    assert str(error) == f"{URL}: SignatureDoesNotMatch: *** with *** does not sign that"
    assert error.__cause__ is None


def test_an_error_without_secrets_keeps_its_cause(answering) -> None:
    answering(403, FORBIDDEN.format("no"))
    assert "SignatureDoesNotMatch" in str(refused(URL).__cause__)


def test_a_server_that_knows_no_buckets_is_no_empty_store(answering) -> None:
    answering(404, "<html>There is no such page.</html>")
    assert "404" in str(refused(URL))


@pytest.mark.usefixtures("hurried")
def test_a_server_that_fails_is_told(answering) -> None:
    answering(500, "<Error><Code>InternalError</Code><Message>try again</Message></Error>")
    assert str(refused(URL)) == f"{URL}: InternalError: try again"


@pytest.mark.usefixtures("hurried")
def test_an_endpoint_where_nobody_listens_is_told(monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    error = refused(URL)
    assert "error sending request" in str(error)
    assert "AWS_ENDPOINT_URL" in str(error.hint)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"])
@pytest.mark.parametrize(
    "value",
    [
        "https://user:hunter2@127.0.0.1",
        "https://user:hun/ter2@127.0.0.1",
        "https://127.0.0.1/?secret=hunter2",
        "127.0.0.1:9000",
        "https://",
        "https://127.0.0.1:99999",
        "https://[::1",
        "https://two words/",
    ],
)
def test_a_wrong_endpoint_is_refused_and_not_repeated(name, value, monkeypatch) -> None:
    monkeypatch.setenv(name, value)
    error = refused(URL)
    assert str(error) == f"{URL}: the value of {name} is not the address of a server"
    assert "ter2" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    "name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"]
)
@pytest.mark.parametrize("value", ["hunter2\n", "hünter2"])
def test_a_secret_with_a_line_break_is_told_and_not_repeated(name, value, monkeypatch) -> None:
    monkeypatch.setenv(name, value)
    error = refused(URL)
    assert f"the value of {name} holds a line break" in str(error)
    assert "nter2" not in "".join(traceback.format_exception(error))


@pytest.mark.usefixtures("hurried")
def test_a_silent_endpoint_is_told(monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        assert f"127.0.0.1:{port}" in str(refused(URL))


def test_plain_http_must_be_allowed(s3, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    assert "AWS_ALLOW_HTTP=true" in str(refused(URL).hint)


def test_a_key_that_stops_the_listing_is_named(bucket) -> None:
    bucket.write("chunks/ab//strange", b"not ours")
    with open_url(bucket.url) as bodies, pytest.raises(BodyStoreError, match="ab//strange") as told:
        list(bodies.pages(older_than=timedelta(0)))
    assert "remove that object" in str(told.value.hint)


def test_without_obstore_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    assert refused(URL).hint == "pip install 'arc-halo[object]'"


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:hunter2@bucket/prefix",
        "s3://hunter2@bucket/prefix",
        "s3://KEY:hunter2/bucket/prefix",
        "s3://bucket/prefix?secret=hunter2",
        "s3://bucket/prefix#hunter2",
        "file://user:hunter2@host/directory",
        "https://KEY:hunter2@bucket/",
    ],
)
def test_a_url_with_more_than_a_place_is_refused_and_not_repeated(url) -> None:
    error = refused(url)
    assert "hunter2" not in "".join(traceback.format_exception(error))
    assert "AWS_SECRET_ACCESS_KEY" in str(error.hint)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/srv/bodies",
        "srv/bodies",
        "file:srv/bodies",
        "file://host/srv/bodies",
        "file:///srv/%00",
        "s3://",
        "s3:///prefix",
        "s3:bucket/prefix",
        "s3://bucket/../other",
        "s3://bucket/a//b",
        "s3://[bucket/prefix",
        "http://bucket/prefix",
        "memory:///",
        "ftp://bucket/prefix",
    ],
)
def test_a_url_of_no_place_is_refused(url) -> None:
    assert refused(url).hint == "write s3://bucket/prefix, or file:///directory"


def test_a_directory_must_be_there(tmp_path) -> None:
    error = refused((tmp_path / "absent").as_uri())
    assert error.hint == f"mount it, or mkdir -p {tmp_path / 'absent'}"


def test_a_directory_that_goes_away_holds_no_missing_bodies(tmp_path) -> None:
    root = tmp_path / "bodies"
    root.mkdir()
    with open_url(root.as_uri()) as bodies:
        bodies.put(BODY)
        root.rename(tmp_path / "elsewhere")
        for call in (
            lambda: bodies.get(list(BODY)),
            lambda: bodies.put(BODY),
            lambda: list(bodies.pages(older_than=timedelta(0))),
            lambda: bodies.delete(list(BODY)),
            lambda: bodies.claim("mine"),
        ):
            with pytest.raises(BodyStoreError, match="No such file") as caught:
                call()
            checked(caught.value)
