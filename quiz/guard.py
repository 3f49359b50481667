"""What stands between the network and the pages: headers, rate limits, forms, and proof that a form is one of ours."""

import hashlib
import hmac
import ipaddress
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import parse_qsl

COOKIE = "visit"
FORM_BYTES = 4096  # the largest form has some 200
FIELDS = 16
TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")  # 32 bytes of secrets.token_urlsafe
KEPT = 20_000  # rate limits remembered; the longest unused are forgotten first

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # no-referrer would send forms with Origin: null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), interest-cohort=()",
    "Cache-Control": "no-store",
}


class Bucket:
    """So many requests at once, refilled at a rate, per key; memory is bounded."""

    def __init__(self, at_once: int, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.at_once, self.per_second, self.clock = at_once, per_second, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key -> (tokens, when)
        self._lock = threading.Lock()

    def wait(self, key: str) -> int:
        """Take one; return 0, or the seconds after which to come again."""
        now = self.clock()
        with self._lock:
            left, when = self._left.pop(key, (float(self.at_once), now))
            left = min(self.at_once, left + (now - when) * self.per_second)
            self._left[key] = (left - 1 if left >= 1 else left, now)
            if len(self._left) > KEPT:
                self._left.popitem(last=False)
        return 0 if left >= 1 else int((1 - left) / self.per_second) + 1


def address_key(address: str | None) -> str:
    """Return whom a rate limit means by an address: itself, of IPv6 its /64 network, which one household has."""
    try:
        ip = ipaddress.ip_address(address or "")
    except ValueError:
        return "unknown"
    return str(ipaddress.ip_network(f"{ip}/64", strict=False)) if ip.version == 6 else str(ip)


def cookie_name(secure: bool) -> str:
    """Return the cookie's name; under https one that a browser takes from this very host alone, for all of its paths.

    Neither a neighbouring subdomain nor a page over http can then plant a visit (the prefix __Host- of RFC 6265bis).
    """
    return f"__Host-{COOKIE}" if secure else COOKIE


def new_token() -> str:
    """Return a token for a browser that has no visit yet."""
    return secrets.token_urlsafe(32)


def known_token(cookie: str | None) -> str | None:
    """Return a cookie's value where it can be a token; what somebody else wrote into it is not sent back."""
    return cookie if cookie and TOKEN.fullmatch(cookie) else None


def form_token(token: str) -> str:
    """Return what a form of the browser with cookie `token` carries: it cannot be known without the cookie."""
    return hmac.digest(token.encode(), b"form", hashlib.sha256).hex()


def is_ours(token: str | None, shown: str, headers: object) -> bool:
    """Say whether a form came from a page that this server gave to this browser: its token, and where it was sent."""
    if not token or not hmac.compare_digest(form_token(token).encode(), shown.encode()):
        return False
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or origin.split("://", 1)[-1] == headers.get("host")


def read_form(body: bytes) -> dict[str, str] | None:
    """Return the fields of a urlencoded form; None where it is none, or a field is there twice."""
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=FIELDS)
    except ValueError:  # of UnicodeDecodeError too
        return None
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else None


class Headers:
    """ASGI: puts HEADERS on every answer, unless it has its own."""

    def __init__(self, app: Callable) -> None:
        self.app = app
        self.extra = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Pass the request on."""

        async def with_headers(message: dict) -> None:
            if message["type"] == "http.response.start":
                own = {k for k, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(h for h in self.extra if h[0] not in own)]
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)
