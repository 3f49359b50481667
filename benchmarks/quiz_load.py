"""How quickly does the quiz answer many visitors at once? Against a server that is running, on loopback.

    python serve_quiz.py serve --quiz demo/quiz --visits_per_minute 10000
    python benchmarks/quiz_load.py --url http://127.0.0.1:8000

Each visitor starts, then looks at a page and its picture, waits (by --pause, plus or minus half of it), answers. One
thread of this process plays all of them over plain sockets, so that what is measured is the server.
Prints the number of requests per second and quantiles of the time from a request to the last byte of its reply.
"""

import argparse
import asyncio
import random
import re
import time
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

import numpy as np


@dataclass
class Seen:
    """What the crowd saw: status and seconds of each request."""

    statuses: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def quantile(self, q: float) -> float:
        """Return a quantile of the seconds."""
        return float(np.quantile(self.seconds, q))


class Browser:
    """One kept connection and its cookie."""

    def __init__(self, host: str, port: int, seen: Seen) -> None:
        self.host, self.port, self.seen, self.cookie = host, port, seen, ""

    async def ask(self, path: str, form: dict[str, str] | None = None) -> bytes:
        """Send a request; return the body of the reply."""
        if not hasattr(self, "reader"):
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        body = urlencode(form).encode() if form is not None else b""
        head = f"{'GET' if form is None else 'POST'} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
        head += f"Cookie: visit={self.cookie}\r\n" if self.cookie else ""
        head += "Content-Type: application/x-www-form-urlencoded\r\n" if form is not None else ""
        began = time.perf_counter()
        self.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        reply = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        content = await self.reader.readexactly(int(re.search(r"(?i)content-length: (\d+)", reply).group(1)))
        self.seen.seconds.append(time.perf_counter() - began)
        self.seen.statuses.append(int(reply.split()[1]))
        if cookie := re.search(r"(?i)set-cookie: visit=([\w-]+)", reply):
            self.cookie = cookie.group(1)
        return content


async def visit(browser: Browser, tiles: int, pause: float, moments: random.Random) -> None:
    """Take the quiz as far as `tiles`."""
    await asyncio.sleep(moments.uniform(0, pause))
    hidden = re.compile(rb'name="form" value="(\w+)"')
    token = hidden.search(await browser.ask("/")).group(1).decode()
    await browser.ask("/start", {"form": token, "experience": moments.choice(["lay", "biologist", "pathologist"])})
    for position in range(1, tiles + 1):
        token = hidden.search(await browser.ask(f"/quiz/{position}")).group(1).decode()
        await browser.ask(f"/tile/{position}")
        await asyncio.sleep(moments.uniform(0.5, 1.5) * pause)
        answer = {"answer": moments.choice(["real", "synthetic"]), "sure": str(moments.randint(1, 3))}
        await browser.ask(f"/quiz/{position}", {"form": token, "revision": "0", **answer})
    browser.writer.close()


def crowd(url: str, visitors: int, tiles: int, pause: float, seed: int = 99) -> Seen:
    """Let so many visitors take the quiz at once; return what they saw."""
    place, seen = urlsplit(url), Seen()

    async def all_of_them() -> None:
        browsers = [Browser(place.hostname, place.port or 80, seen) for _ in range(visitors)]
        await asyncio.gather(
            *(visit(browser, tiles, pause, random.Random(seed + i)) for i, browser in enumerate(browsers))
        )

    asyncio.run(all_of_them())
    return seen


def told(seen: Seen, took: float) -> str:
    """Return the result in a line."""
    quantiles = ", ".join(
        f"{name} {1000 * seen.quantile(q):.1f} ms" for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    )
    return f"{len(seen.seconds)} requests in {took:.0f} s ({len(seen.seconds) / took:.0f} a second): {quantiles}"


def main() -> None:
    """Read the flags, send the crowd, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--visitors", type=int, default=200)
    parser.add_argument("--tiles", type=int, default=20, help="of each visitor; at most the quiz's round")
    parser.add_argument("--pause", type=float, default=3.0, help="seconds that a visitor looks, in the mean")
    args = parser.parse_args()
    began = time.monotonic()
    seen = crowd(args.url, args.visitors, args.tiles, args.pause)
    print(told(seen, time.monotonic() - began))


if __name__ == "__main__":
    main()
