"""The quiz's pages: what each address shows, and to whom. The truth stays on this side until a visit has ended."""

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from quiz.deck import Deck, check_code
from quiz.guard import (
    FORM_BYTES,
    Bucket,
    Headers,
    address_key,
    cookie_name,
    form_token,
    is_ours,
    known_token,
    new_token,
    read_form,
)
from quiz.result import scale_bar, standing, wrong_tiles
from quiz.store import EXPERIENCES, SURENESS, Answer, Store, Visit

HERE = Path(__file__).parent
STATIC = {
    "quiz.css": "text/css",
    "quiz.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "tissue.svg": "image/svg+xml",
}
COOKIE_SECONDS = 30 * 24 * 3600
QUALITY = ("optional", "required", "off")
AT_ONCE, PER_SECOND = 130, 20  # requests of one visit, beside those of a page of results: a picture per tile


@dataclass(frozen=True)
class Options:
    """How a quiz is served. `codes`: those a study admits, None: any; `secure`: behind a TLS proxy."""

    study: bool = False
    codes: frozenset[str] | None = None
    quality: str = "optional"
    secure: bool = False
    visits_per_minute: int = 120  # that one address may begin


def make_app(deck: Deck, store: Store, options: Options) -> Headers:
    """Return the ASGI application.

    What writes runs in threads, since a commit waits for the disk; reading, which waits for nobody, in the event loop.
    """
    from fastapi import Depends, FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, RedirectResponse, Response
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from starlette.exceptions import HTTPException

    files = {name: (HERE / "static" / name).read_bytes() for name in STATIC}
    version = hashlib.sha256(b"".join(files.values())).hexdigest()[:12]
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    environment.globals |= {"version": version, "deck": deck, "options": options, "scale": scale_bar(deck.um)}
    environment.globals |= {"experiences": EXPERIENCES, "sureness": SURENESS}
    cookie = cookie_name(options.secure)
    per_visit = Bucket(AT_ONCE + deck.round, PER_SECOND)
    strangers = Bucket(5 * options.visits_per_minute, 5 * options.visits_per_minute / 60)
    starts = Bucket(options.visits_per_minute, options.visits_per_minute / 60)

    silent = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}  # whatever OTEL_* may say
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, telemetry=silent)

    def page(name: str, code: int = 200, /, **values: Any) -> HTMLResponse:
        return HTMLResponse(environment.get_template(name).render(**values), code)

    def limit(bucket: Bucket, key: str) -> None:
        if seconds := bucket.wait(key):
            raise HTTPException(429, headers={"Retry-After": str(seconds)})

    def with_cookie(response: Response, token: str) -> Response:
        # Not strict: who follows another site's link would come without it, be given a new one, and lose the visit.
        response.set_cookie(
            cookie, token, max_age=COOKIE_SECONDS, path="/", httponly=True, samesite="lax", secure=options.secure
        )
        return response

    async def visit_of(request: Request) -> Visit | None:
        """Return the browser's visit; too many requests end here."""
        token = request.cookies.get(cookie)
        visit = store.visit(token) if token else None
        limit(*((per_visit, str(visit.id)) if visit else (strangers, address(request))))
        return visit

    def address(request: Request) -> str:
        return address_key(request.client.host if request.client else None)

    async def form_of(request: Request) -> dict[str, str]:
        """Return the fields of a form that this browser was given."""
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/x-www-form-urlencoded":
            raise HTTPException(415)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > FORM_BYTES:
                raise HTTPException(413)
        if (form := read_form(body)) is None:
            raise HTTPException(400)
        if not is_ours(request.cookies.get(cookie), form.get("form", ""), request.headers):
            raise HTTPException(403)
        return form

    Visiting, Form = Annotated[Visit | None, Depends(visit_of)], Annotated[dict, Depends(form_of)]

    def current(visit: Visit) -> RedirectResponse:
        return RedirectResponse("/result" if visit.finished else f"/quiz/{visit.current}", 303)

    def start_page(request: Request, visit: Visit | None, error: str = "", code: str = "") -> Response:
        token = known_token(request.cookies.get(cookie)) or new_token()
        values = {"visit": visit, "form": form_token(token), "error": error, "code": code}
        return with_cookie(page("start.html", 422 if error else 200, **values), token)

    def tile_page(
        request: Request, visit: Visit, position: int, chosen: dict[str, str], revision: int, error: str = ""
    ) -> Response:
        tissue = deck.cards[store.tile(visit, position)].tissue
        values = {"visit": visit, "position": position, "tissue": tissue, "chosen": chosen, "revision": revision}
        values |= {"error": error, "form": form_token(request.cookies[cookie])}
        kept = request.query_params.get("kept", "")
        values["kept"] = int(kept) if kept.isascii() and kept.isdigit() and len(kept) < 6 else None
        return page("tile.html", 422 if error else 200, **values)

    @app.get("/")
    async def start_get(request: Request, visit: Visiting) -> Response:
        return start_page(request, visit)

    @app.post("/start")
    def start_post(request: Request, form: Form, visit: Visiting) -> Response:
        limit(starts, address(request))
        experience = form.get("experience") if form.get("experience") in EXPERIENCES else None
        if options.study:
            typed = form.get("code", "")[:64]
            code = check_code(typed)
            if code is None or (options.codes is not None and code not in options.codes):
                error = "This is not one of the study's codes. Check it with whoever gave it to you."
                return start_page(request, visit, error, typed)
            _, token = store.start(deck.deal_for(code), experience, code)
        else:
            visitor = visit.visitor if visit else None
            tiles = deck.deal(np.random.default_rng(secrets.randbits(128)), seen=store.seen(visitor) if visitor else ())
            _, token = store.start(tiles, experience, visitor=visitor)
        return with_cookie(RedirectResponse("/quiz", 303), token)

    @app.get("/quiz")
    async def quiz_get(visit: Visiting) -> Response:
        return current(visit) if visit else RedirectResponse("/", 303)

    @app.get("/quiz/{position}")
    async def tile_get(request: Request, position: int, visit: Visiting) -> Response:
        if visit is None:
            return RedirectResponse("/", 303)
        if not 1 <= position <= visit.n:
            raise HTTPException(404)
        if visit.finished or position > visit.current or (options.study and position != visit.current):
            return current(visit)
        before = store.answer_at(visit, position)
        return tile_page(request, visit, position, _fields(before[0]) if before else {}, before[1] if before else 0)

    @app.post("/quiz/{position}")
    def tile_post(request: Request, position: int, form: Form, visit: Visiting) -> Response:
        if visit is None:
            return RedirectResponse("/", 303)
        if not 1 <= position <= visit.n or not form.get("revision", "").isdecimal() or len(form["revision"]) > 6:
            raise HTTPException(400)
        if position > visit.current:
            return current(visit)
        if isinstance(answer := _read_answer(form, options.quality), str):
            return tile_page(request, visit, position, form, int(form["revision"]), answer)
        if store.answer(visit, position, answer, int(form["revision"]), may_change=not options.study):
            return (
                current(store.visit(request.cookies[cookie]) or visit) if position == visit.current else _next(position)
            )
        before = store.answer_at(visit, position)
        if visit.finished or before is None or before[0] == answer:  # the same form twice: nothing to tell
            return current(store.visit(request.cookies[cookie]) or visit)
        return RedirectResponse(f"/quiz/{visit.current}?kept={position}", 303)

    def _next(position: int) -> RedirectResponse:
        return RedirectResponse(f"/quiz/{position + 1}", 303)

    @app.get("/tile/{position}")
    async def picture_get(position: int, visit: Visiting) -> Response:
        if visit is None or not 1 <= position <= visit.current:
            raise HTTPException(404)  # no looking ahead
        if options.study and (visit.finished or position != visit.current):
            raise HTTPException(404)
        return Response(deck.path(store.tile(visit, position)).read_bytes(), media_type="image/jpeg")

    @app.get("/result")
    async def result_get(request: Request, visit: Visiting) -> Response:
        if visit is None or not visit.finished:
            return RedirectResponse("/quiz", 303)
        if options.study:  # participants talk: nothing is told before the study ends
            return page("thanks.html", visit=visit)
        own = standing(store.tally(visit), store.tallies())
        values = {"own": own, "wrong": wrong_tiles(deck, store.answers(visit))}
        return page("result.html", visit=visit, form=form_token(request.cookies[cookie]), **values)

    @app.get("/static/{name}")
    async def static_get(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return Response(files[name], media_type=STATIC[name], headers={"Cache-Control": "public, max-age=86400"})

    async def failed(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)  # an address that is no number is nowhere
        return _with(page("message.html", status, status=status), getattr(error, "headers", None) or {})

    app.add_exception_handler(HTTPException, failed)
    app.add_exception_handler(RequestValidationError, failed)
    app.add_exception_handler(Exception, lambda request, error: page("message.html", 500, status=500))
    return Headers(app)  # outermost: on pages of faults too


def _with(response: Any, headers: dict[str, str]) -> Any:
    response.headers.update(headers)
    return response


def _fields(answer: Answer) -> dict[str, str]:
    """Return an answer as the form has it."""
    fields = {"answer": "real" if answer.says_real else "synthetic", "sure": str(answer.sure)}
    return fields | ({"quality": str(answer.quality)} if answer.quality else {})


def _read_answer(form: dict[str, str], quality: str) -> Answer | str:
    """Return what a form says, or, for the visitor, what it lacks."""
    if form.get("answer") not in ("real", "synthetic"):
        return "Choose real or synthetic."
    if form.get("sure") not in ("1", "2", "3"):
        return "Say how sure you are."
    rated = form.get("quality", "") if quality != "off" else ""
    if rated not in ("1", "2", "3", "4", "5") and (rated or quality == "required"):
        return "Rate the quality from 1 to 5."
    return Answer(form["answer"] == "real", int(form["sure"]), int(rated) if rated else None)
