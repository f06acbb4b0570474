"""Every refusal of the guard, and that what passes carries the headers."""

from typing import Any

import pytest

from saetools.dashboard.live.guard import Guard, check_address, new_token, policy, token_query
from saetools.errors import ConfigError

CSP = policy(["'sha256-x'"])


def inner(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"inside"]


def ask(
    token: str | None = None, method: str = "GET", host: str = "127.0.0.1:8050", **environ: str
) -> tuple[str, dict, bytes]:
    answer: dict[str, Any] = {}

    def start_response(status: str, headers: list[tuple[str, str]], *rest: Any) -> None:
        answer.update(status=status, headers=dict(headers))

    guard = Guard(inner, frozenset({"127.0.0.1", "localhost", "::1"}), CSP, token)
    request = {"REQUEST_METHOD": method, "HTTP_HOST": host, "PATH_INFO": "/", "QUERY_STRING": ""} | environ
    body = b"".join(guard(request, start_response))
    return answer["status"], answer["headers"], body


@pytest.mark.parametrize("host", ["127.0.0.1:8050", "localhost:8050", "localhost", "[::1]:8050"])
def test_own_names_pass_with_headers(host: str) -> None:
    status, headers, body = ask(host=host)
    assert (status, body) == ("200 OK", b"inside")
    assert headers["Content-Security-Policy"] == CSP and "unsafe-eval" not in CSP
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(
    "host", ["evil.test", "evil.test:8050", "127.0.0.1.evil.test", "", "localhost.evil.test:8050", "[::2]:80"]
)
def test_foreign_names_are_misdirected(host: str) -> None:
    status, _, body = ask(host=host)
    assert status.startswith("421") and body != b"inside"


@pytest.mark.parametrize(
    "origin", ["http://evil.test", "null", "http://127.0.0.1:9999", "http://localhost:8050", "", "http://["]
)
def test_foreign_origins_are_forbidden(origin: str) -> None:
    assert ask(method="POST", CONTENT_TYPE="application/json", CONTENT_LENGTH="2", HTTP_ORIGIN=origin)[0].startswith(
        "403"
    )


def test_posts_are_small_json_of_our_own_pages() -> None:
    own = {"HTTP_ORIGIN": "http://127.0.0.1:8050", "CONTENT_TYPE": "application/json", "CONTENT_LENGTH": "2"}
    assert ask(method="POST", **own)[0] == "200 OK"
    for content in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert ask(method="POST", **own | {"CONTENT_TYPE": content})[0].startswith("403")
    for length in (str(5 << 20), "", "-1", "x", "9" * 5000):
        assert ask(method="POST", **own | {"CONTENT_LENGTH": length})[0].startswith("413")


def test_a_token_is_asked_for_and_becomes_a_cookie() -> None:
    token = new_token()
    assert ask(token)[0].startswith("401")
    assert ask(token, QUERY_STRING="token=wrong")[0].startswith("401")
    assert ask(token, HTTP_COOKIE="saetools_token=wrong")[0].startswith("401")
    for path in ("/", "", "//evil.test/x", "/\r\nSet-Cookie: a=b"):
        status, headers, _ = ask(token, QUERY_STRING=f"token={token}", PATH_INFO=path)
        assert status.startswith("303") and headers["Location"] == "/", "not to another site, and no further header"
    assert "HttpOnly" in headers["Set-Cookie"] and "SameSite=Strict" in headers["Set-Cookie"]
    cookie = headers["Set-Cookie"].split(";")[0]
    assert ask(token, HTTP_COOKIE=cookie)[0] == "200 OK"
    assert new_token() != token and len(token) >= 32


def test_apps_at_two_ports_keep_their_cookies_apart() -> None:
    """A browser sends the cookies of a machine to all of its ports: the second app had shut out the first."""
    cookies = {}
    for port, token in (("8050", "one"), ("8051", "two")):
        headers = ask(token, host=f"127.0.0.1:{port}", QUERY_STRING=f"token={token}")[1]
        name, _, value = headers["Set-Cookie"].split(";")[0].partition("=")
        cookies[name] = value
    jar = "; ".join(f"{name}={value}" for name, value in cookies.items())
    for port, token in (("8050", "one"), ("8051", "two")):
        assert ask(token, host=f"127.0.0.1:{port}", HTTP_COOKIE=jar)[0] == "200 OK"
        assert ask(token, host=f"[::1]:{port}", HTTP_COOKIE=jar)[0] == "200 OK"
        assert ask("three", host=f"127.0.0.1:{port}", HTTP_COOKIE=jar)[0].startswith("401")


@pytest.mark.parametrize("token", ["two words", 'a;b "c"', "a+b&c#d", "100%41", "\u00e4\u65e5", "x\r\ny: z"])
def test_a_token_of_any_signs(token: str) -> None:
    """As printed in the address, and as a browser gives the cookie back."""
    query = token_query(token)
    assert query.isascii() and query.isprintable()
    status, headers, _ = ask(token, QUERY_STRING=query.removeprefix("?"))
    assert status.startswith("303") and headers["Set-Cookie"].isascii() and headers["Set-Cookie"].isprintable()
    assert ask(token, HTTP_COOKIE=headers["Set-Cookie"].split(";")[0])[0] == "200 OK"


def test_an_empty_token_is_refused() -> None:
    """Of a shell variable that is not set: nobody could have come in."""
    for host in ("127.0.0.1", "0.0.0.0"):
        with pytest.raises(ConfigError, match="token is empty"):
            check_address(host, "")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.org"])
def test_other_machines_need_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="token"):
        check_address(host, None)
    check_address(host, "secret")
    check_address("127.0.0.1", None)
