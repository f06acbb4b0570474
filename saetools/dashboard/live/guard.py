"""What stands between the app and the network: who may ask, for what, and what a browser may do with the answer."""

import hmac
import secrets
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from saetools.errors import ConfigError

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
EVERYWHERE = frozenset({"", "0.0.0.0", "::"})
"""Hosts by which a server listens at every address of this machine."""
MAX_BODY_BYTES = 4 << 20  # the map's largest selection, sent with each page of the table
COOKIE = "saetools_token"

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Wsgi = Callable[[Environ, StartResponse], Iterable[bytes]]


def check_address(host: str, token: str | None) -> None:
    """ConfigError where the app would listen to other machines without a token, or the token is empty."""
    if token == "":
        raise ConfigError("the token is empty, and so would protect nothing. Give one, or `auto`, which makes one.")
    if host not in LOOPBACK and not token:
        raise ConfigError(
            f"the dashboard would listen on {host}, where other machines reach it. Give a token (--token auto makes "
            "one), or leave the host at 127.0.0.1."
        )


def names_of(host: str) -> frozenset[str]:
    """Names under which the app may be asked for; besides these, by the address that a connection came to."""
    return LOOPBACK | {socket.gethostname().lower() if host in EVERYWHERE else host.lower()}


def reachable(host: str) -> str:
    """What to ask for to reach a server that listens on `host`: of all addresses that of the way to other machines."""
    if host not in EVERYWHERE:
        return host
    family, far = (socket.AF_INET6, "2001:db8::1") if ":" in host else (socket.AF_INET, "192.0.2.1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as way:
            way.connect((far, 9))  # of a datagram socket: it chooses the way and sends nothing
            return str(way.getsockname()[0])
    except OSError:  # no network
        return socket.gethostname()


def new_token() -> str:
    """A token that nobody guesses: 192 random bits."""
    return secrets.token_urlsafe(24)


def token_query(token: str) -> str:
    """`?token=...`, whatever signs the token has."""
    return f"?token={quote(token, safe='')}"


def policy(script_hashes: Iterable[str]) -> str:
    """Content security policy of the app: its own scripts, none made from strings, no other server."""
    rules = {
        "default-src": "'self'",
        "script-src": " ".join(["'self'", *script_hashes]),
        "style-src": "'self' 'unsafe-inline'",  # dash, plotly and ag-grid write style sheets
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": "'self'",
        "object-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


@dataclass(frozen=True)
class Guard:
    """A WSGI application around another one.

    421 for a Host that is neither a name of ours nor the address that the connection came to (DNS rebinding), 403 for
    another site's Origin and for a body that is not JSON (which another site's form could send), 413 for one over
    4 MiB, 401 without the token where one is set. The token comes once as ?token=... and then as a cookie that scripts
    cannot read.
    """

    app: Wsgi
    hosts: frozenset[str]  # names under which the app may be asked for, without port
    csp: str
    token: str | None = None

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        refusal = self._refusal(environ)
        if refusal is not None:
            return _answer(start_response, *refusal)
        if self.token is not None and _query_token(environ) is not None:
            cookie = f"{_cookie_name(environ)}={quote(self.token, safe='')}; HttpOnly; SameSite=Strict; Path=/"
            return _answer(start_response, "303 See Other", "", [("Location", "/"), ("Set-Cookie", cookie)])

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [*headers, *self._headers()], *rest)

        return self.app(environ, start)

    def _refusal(self, environ: Environ) -> tuple[str, str] | None:
        own = environ.get("HTTP_HOST", "")
        if _name(own) not in self.hosts | _came_to(environ):
            return "421 Misdirected Request", "this server is not known by that name"
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and origin.partition("://")[2] != own:
            return "403 Forbidden", "requests from other sites are refused"
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            if environ.get("CONTENT_TYPE", "").split(";")[0].strip() != "application/json":
                return "403 Forbidden", "only JSON is accepted"
            length = environ.get("CONTENT_LENGTH") or ""
            if not length.isdecimal() or len(length) > 9 or int(length) > MAX_BODY_BYTES:
                return "413 Content Too Large", "requests have at most 4 MiB"
        if self.token is not None and not self._is_known(environ):
            return "401 Unauthorized", "open the address with ?token=... that the server printed"
        return None

    def _is_known(self, environ: Environ) -> bool:
        assert self.token is not None
        given = [_query_token(environ), _cookie_token(environ)]
        return any(hmac.compare_digest(value.encode(), self.token.encode()) for value in given if value)

    def _headers(self) -> list[tuple[str, str]]:
        return [
            ("Content-Security-Policy", self.csp),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Frame-Options", "DENY"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ]


def _name(host: str) -> str:
    """The name in a Host header, without port: `[::1]:8050` -> `::1`."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].split("]")[0]
    return host.rsplit(":", 1)[0] if ":" in host else host


def _came_to(environ: Environ) -> frozenset[str]:
    """Our own address in this connection, where the server tells it; an IPv4 one as such, also on an IPv6 socket."""
    connection = environ.get("werkzeug.socket")
    return frozenset() if connection is None else frozenset({connection.getsockname()[0].removeprefix("::ffff:")})


def _query_token(environ: Environ) -> str | None:
    values = parse_qs(environ.get("QUERY_STRING", "")).get("token")
    return values[0] if values else None


def _cookie_token(environ: Environ) -> str | None:
    try:
        cookie = SimpleCookie(environ.get("HTTP_COOKIE", ""))
    except CookieError:
        return None
    name = _cookie_name(environ)
    return unquote(cookie[name].value) if name in cookie else None


def _cookie_name(environ: Environ) -> str:
    """Of this app's own: browsers keep cookies by the name of a machine, not by its ports."""
    port = environ.get("HTTP_HOST", "").rpartition(":")[2]
    return f"{COOKIE}_{port}" if port.isdecimal() else COOKIE


def _answer(
    start_response: StartResponse, status: str, text: str, headers: list[tuple[str, str]] | None = None
) -> Iterable[bytes]:
    body = text.encode()
    fixed = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response(status, fixed + [("X-Content-Type-Options", "nosniff"), *(headers or [])])
    return [body]
