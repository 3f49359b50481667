"""The pages over HTTP: who sees what, what cannot be known before the end, and what strangers may not do."""

import re
from functools import partial

import pytest
from quiz_visitors import InProcess, Visitor, make_quiz, open_answers

from quiz.app import Options, make_app
from quiz.guard import HEADERS, Bucket, address_key, form_token
from quiz.store import Answer


@pytest.fixture(scope="module")
def quiz(tmp_path_factory):
    return make_quiz(tmp_path_factory.mktemp("quiz")).folder


@pytest.fixture
def site(quiz):
    """Make visitors of one server; options as of `serve`. Each test has its own answers."""
    for path in quiz.glob("answers.sqlite*"):
        path.unlink()
    deck, store = open_answers(quiz)

    def visitor(app=None, base_url="http://quiz.test", **options):
        app = app or make_app(deck, store, Options(**options))
        return Visitor(InProcess(app, base_url))

    visitor.deck, visitor.store = deck, store
    return visitor


def answers(site):
    return [
        (r["visit"], r["position"], r["says_real"], r["sure"], r["quality"], r["revision"]) for r in site.store.export()
    ]


def take(visitor, n=8, real=lambda position: True):
    for position in range(1, n + 1):
        reply = visitor.answer(position, "real" if real(position) else "synthetic")
    return reply


# ---- A visit ----


def test_a_visit_from_start_to_result(site):
    visitor = site()
    assert visitor.start(experience="biologist").headers["location"] == "/quiz"
    assert visitor.get("/quiz").headers["location"] == "/quiz/1"
    page = visitor.get("/quiz/1").text
    assert "Tile 1 <span>of 8" in page and "10 µm" in page and "32 µm across" in page
    assert visitor.answer(1, "synthetic", 3, quality="4").headers["location"] == "/quiz/2"
    for position in range(2, 9):
        reply = visitor.answer(position)
    assert reply.headers["location"] == "/result" and visitor.get("/quiz/3").headers["location"] == "/result"
    assert answers(site)[0] == (1, 1, 0, 3, 4, 1) and len(answers(site)) == 8
    right = [site.deck.cards[t].real == a.says_real for _, t, a in site.store.answers(site.store.visit_by_id(1))]
    page = visitor.get("/result").text
    assert f"{sum(right)} of 8 right" in page and "Too few others" in page
    fooled = {int(p) for p in re.findall(r'src="/tile/(\d)"', page)}
    assert fooled == {position for position, fine in enumerate(right, 1) if not fine}


def test_the_result_says_what_was_seen(site):
    """All called real: no synthetic tile found, all real ones recognised, d' 0."""
    visitor = site()
    visitor.start()
    take(visitor)
    page = visitor.get("/result").text.replace("&nbsp;", "\xa0")
    assert "4 of 8 right" in page and "sensitivity 0\xa0%" in page and "specificity 100\xa0%" in page
    assert "<dd>0.00</dd>" in page and page.count("you said real") == 4 and "from 22\xa0% to 78\xa0%" in page  # Wilson


def test_visitors_are_compared_once_there_are_enough(site):
    first = site()
    app = first.client.app
    for _ in range(6):
        visitor = site(app)
        visitor.start(experience="pathologist")
        take(visitor)
    page = visitor.get("/result").text.replace("&nbsp;", "\xa0")
    assert "better than 0\xa0% of 5 other visits" in page and "pathologist 50\xa0% (6)" in page
    assert re.search(r'aria-label="Visits by share of right answers. 50 to 60 percent: 6. Yours', page)


def test_who_comes_again_sees_other_tiles_and_counts_as_one_visitor(site):
    visitor = site()
    shown = []
    for k in range(7):
        assert visitor.start().status_code == 303
        visit = site.store.visit(visitor.client.cookies["visit"])
        shown.append({site.store.tile(visit, position) for position in range(1, 9)})
        assert (visit.id, visit.visitor) == (k + 1, 1)
        take(visitor)
    assert len(set.union(*shown[:6])) == 48, "all tiles of the quiz, before any comes again"
    assert len(shown[6]) == 8 and visitor.get("/result").status_code == 200
    other = site(visitor.client.app)
    other.start()
    assert site.store.visit(other.client.cookies["visit"]).visitor == 8


def test_going_back_changes_an_answer_and_the_second_tab_is_told(site):
    visitor = site()
    visitor.start()
    behind = visitor.form(1, "synthetic", 1)
    visitor.answer(1, "real", 3)
    reply = visitor.send(1, behind)  # a tab opened before the answer
    assert reply.headers["location"] == "/quiz/2?kept=1"
    assert "Tile 1 had an answer already" in visitor.get("/quiz/2?kept=1").text
    assert answers(site) == [(1, 1, 1, 3, None, 1)]
    page = visitor.get("/quiz/1").text
    assert re.search(r'value="real"[^>]*checked', page) and "you may change it" in page
    assert visitor.answer(1, "synthetic", 2).headers["location"] == "/quiz/2"
    assert answers(site) == [(1, 1, 0, 2, None, 2)]


def test_a_double_submit_is_one_answer_and_no_fuss(site):
    visitor = site()
    visitor.start()
    form = visitor.form(1)
    assert [visitor.send(1, form).headers["location"] for _ in range(3)] == ["/quiz/2"] * 3
    assert len(answers(site)) == 1
    for position in range(2, 9):
        form = visitor.form(position)
        visitor.send(position, form)
    assert visitor.send(8, form).headers["location"] == "/result" and len(answers(site)) == 8


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"answer": "maybe"}, "Choose real or synthetic."),
        ({"sure": "4"}, "how sure you are."),
        ({"quality": "6"}, "from 1 to 5."),
    ],
)
def test_an_incomplete_answer_is_asked_for_again_and_the_rest_is_kept(site, fields, said):
    visitor = site()
    visitor.start()
    reply = visitor.answer(1, **fields)
    assert reply.status_code == 422 and said in reply.text and 'role="alert"' in reply.text
    chosen = re.findall(r'type="radio"[^>]* checked', reply.text)
    assert len(chosen) == (2 if "quality" in fields else 1)
    assert answers(site) == []


@pytest.mark.parametrize("quality", ["off", "required"])
def test_quality_is_asked_for_as_the_flag_says(site, quality):
    visitor = site(quality=quality)
    visitor.start()
    assert ('name="quality"' in visitor.get("/quiz/1").text) == (quality == "required")
    assert visitor.answer(1).status_code == (422 if quality == "required" else 303)
    assert visitor.answer(1, quality="5").status_code == 303
    assert [row[4] for row in answers(site)] == [5 if quality == "required" else None]


# ---- A study ----


def test_in_a_study_the_code_decides_and_there_is_no_way_back(site):
    app = site(study=True).client.app
    visitor = site(app)
    visitor.start(code="P01")
    assert [site.store.tile(site.store.visit_by_id(1), p) for p in range(1, 9)] == site.deck.deal_for("P01")
    for position in (1, 2):
        visitor.answer(position)
    assert visitor.get("/quiz/1").headers["location"] == "/quiz/3"
    assert visitor.get("/tile/2").status_code == 404 and visitor.get("/tile/3").status_code == 200
    form = visitor.form(3)
    visitor.send(1, {**form, "revision": "1", "answer": "synthetic"})
    assert [row[2] for row in answers(site)] == [1, 1]
    other = site(app)
    other.start(code="P01")
    assert other.get("/quiz").headers["location"] == "/quiz/3" and visitor.get("/quiz").headers["location"] == "/"
    for position in range(3, 9):
        other.answer(position)
    page = other.get("/result").text
    assert "Thank you" in page and "right" not in page and "/tile/" not in page
    assert all(other.get(f"/tile/{p}").status_code == 404 for p in range(1, 9))


def test_a_study_admits_its_codes_alone(site):
    visitor = site(study=True, codes=frozenset({"P01"}))
    assert "Participant code" in visitor.get("/").text
    for code in ("P02", "", "p01", "P01' OR '1'='1", "<b>"):
        reply = visitor.start(code=code)
        assert (
            reply.status_code == 422
            and "not one of the study" in reply.text
            and "<b>" not in reply.text.split("value=")[2]
        )
    assert visitor.start(code=" P01 ").status_code == 303


# ---- What cannot be known ----


def test_pages_and_headers_of_real_and_synthetic_tiles_are_the_same_byte_by_byte(site):
    """Many visits; at each position and tissue, everything but the picture's own pixels is one and the same."""
    app = site(visits_per_minute=10_000).client.app
    pages, pictures, kinds = {}, set(), set()
    for _ in range(12):
        visitor = site(app)
        visitor.start()
        visit = site.store.visit(visitor.client.cookies["visit"])
        token = form_token(visitor.client.cookies["visit"])
        for position in range(1, 9):
            card = site.deck.cards[site.store.tile(visit, position)]
            page, picture = visitor.get(f"/quiz/{position}"), visitor.get(f"/tile/{position}")
            kinds.add((position, card.tissue, card.real))
            everything = (page.status_code, page.headers.raw, page.content.replace(token.encode(), b"T" * len(token)))
            pages.setdefault((position, card.tissue), set()).add(repr(everything))
            pictures.add((picture.status_code, tuple(picture.headers.raw), len(picture.content)))
            for secret in (card.id, card.source, card.model):
                assert secret == "real" or secret not in page.text + repr(page.headers.raw + picture.headers.raw)
            visitor.answer(position)
    assert len(kinds) > 28, "both kinds of both tissues at nearly every position"
    assert all(len(variants) == 1 for variants in pages.values()) and len(pictures) == 1
    names = {name for name, _ in next(iter(pictures))[1]} - {b"content-length", b"content-type"}
    assert names == {name.lower().encode() for name in HEADERS}, "no ETag, no Last-Modified, no name"


def test_nobody_looks_ahead(site):
    visitor = site()
    assert visitor.get("/tile/1").status_code == 404
    visitor.start()
    visitor.answer(1)
    assert [visitor.get(f"/tile/{p}").status_code for p in (1, 2, 3, 8, 9, 0, -1)] == [200, 200] + [404] * 5
    assert (
        visitor.get("/quiz/5").headers["location"] == "/quiz/2"
        and visitor.get("/result").headers["location"] == "/quiz"
    )
    form = visitor.form(2)
    assert visitor.send(5, form).headers["location"] == "/quiz/2" and len(answers(site)) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/quiz.json", "/tiles/", "/answers.sqlite", "/static/../quiz.json", "/static/..%2f..%2fquiz.json",
        "/static/%2e%2e/app.py", "/static//etc/passwd", "/tile/../../quiz.json", "/tile/1.jpg", "/tile/..%2fquiz.json",
        "/tile/1%00", "/quiz/1'%20OR%201=1", "/quiz/99999999999999999999999", "/quiz/0", "/quiz/9", "/docs",
        "/openapi.json", "/redoc", "/static/quiz.css%00.js",
    ],
)  # fmt: skip
def test_there_is_nothing_else_to_be_had(site, path):
    visitor = site()
    visitor.start()
    reply = visitor.get(path)
    assert reply.status_code == 404 and "There is nothing here" in reply.text
    assert "token" not in reply.text and "Traceback" not in reply.text


# ---- Strangers ----


def test_every_answer_has_the_headers_and_the_cookie_is_out_of_reach(site):
    visitor = site()
    replies = [visitor.get(path) for path in ("/", "/nowhere", "/static/quiz.css", "/quiz", "/result")]
    replies += [visitor.start(), visitor.get("/quiz/1"), visitor.get("/tile/1")]
    for reply in replies:
        assert {name.lower() for name in HEADERS} <= set(reply.headers), reply.url
        assert "unsafe" not in reply.headers["content-security-policy"]
    cookies = [reply.headers["set-cookie"] for reply in replies if "set-cookie" in reply.headers]
    assert len(cookies) >= 2
    assert all("HttpOnly" in c and "SameSite=lax" in c and "Secure" not in c for c in cookies)


def test_under_https_the_cookie_is_of_this_host_alone_and_a_planted_one_is_nobodys(site):
    visitor = site(secure=True, base_url="https://quiz.test")
    given = visitor.get("/").headers["set-cookie"]
    assert re.match(r"__Host-visit=[\w-]{43}; ", given) and "Secure" in given and "Path=/" in given
    assert "domain" not in given.lower(), "a browser drops __Host- cookies that have one"
    assert visitor.start().status_code == 303 and visitor.answer(1).headers["location"] == "/quiz/2"
    planted = {"Cookie": f"visit={visitor.client.cookies['__Host-visit']}"}
    assert site(visitor.client.app, "https://quiz.test").client.get("/quiz", headers=planted).headers["location"] == "/"


def test_pages_load_nothing_from_elsewhere_and_need_no_inline_script_or_style(site):
    visitor = site()
    visitor.start()
    pages = [visitor.get("/").text, visitor.get("/quiz/1").text, visitor.get("/nowhere").text]
    take(visitor)
    pages.append(visitor.get("/result").text)
    for page in pages:
        assert not re.search(r'(?:src|href|action)="(?!/|#)', page) and "//" not in re.sub(r"<!DOCTYPE.*", "", page)
        assert not re.search(r"<style|<script(?! src)|\sstyle=|\son\w+=", page)
    for name in ("quiz.css", "quiz.js", "tissue.svg", "icon.svg"):
        text = visitor.get(f"/static/{name}").text.replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text and "@import" not in text and "url(" not in text


@pytest.mark.parametrize("forged", ["", "0" * 64, None, "of another", "\u00e9"])
def test_a_form_of_another_page_is_refused(site, forged):
    app = site().client.app
    visitor, other = site(app), site(app)
    visitor.start()
    other.start()
    form = visitor.form(1)
    form["form"] = other.form(1)["form"] if forged == "of another" else forged
    form = {name: value for name, value in form.items() if value is not None}
    assert visitor.send(1, form).status_code in (400, 403) and answers(site) == []


def test_a_form_sent_from_another_site_is_refused(site):
    visitor = site()
    visitor.start()
    form = visitor.form(1)
    for headers in ({"Origin": "http://evil.test"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert visitor.client.post("/quiz/1", data=form, headers=headers).status_code == 403
    assert answers(site) == []
    fine = {"Origin": "http://quiz.test", "Sec-Fetch-Site": "same-origin"}
    assert visitor.client.post("/quiz/1", data=form, headers=fine, follow_redirects=False).status_code == 303


def test_starting_gives_a_new_token_so_that_none_can_be_planted(site):
    visitor = site()
    visitor.client.cookies.set("visit", "planted", domain="quiz.test", path="/")
    reply = visitor.start()
    assert reply.status_code == 303 and "planted" not in reply.headers["set-cookie"]
    assert site.store.visit("planted") is None


@pytest.mark.parametrize("cookie", ['"\\012Set-Cookie: a=b"', '"\\000"', "\u00e9", "x" * 4000, '"a;b"', ""])
def test_a_cookie_that_is_none_of_ours_gets_a_new_one(site, cookie):
    reply = site().client.get("/", headers={"Cookie": b"visit=" + cookie.encode("latin-1")})
    (given,) = reply.headers.get_list("set-cookie")
    assert reply.status_code == 200 and re.match(r"visit=[\w-]{43};", given)


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    ("status", "send"),
    [
        (413, {"content": b"a=" + b"x" * 5000, "headers": FORM}),
        (415, {"json": {"answer": "real"}}),
        (415, {"files": {"answer": b"real"}}),
        (400, {"content": b"a=1&a=2", "headers": FORM}),
        (400, {"content": b"\xff\xfe=1", "headers": FORM}),
        (400, {"content": b"&".join(b"a%d=1" % i for i in range(50)), "headers": FORM}),
    ],
)
def test_what_is_no_form_is_refused(site, status, send):
    visitor = site()
    visitor.start()
    reply = visitor.client.post("/quiz/1", **send)
    assert reply.status_code == status and "<h1>That" in reply.text


@pytest.mark.parametrize("revision", ["", "-1", "x", "1' OR 1=1", "9" * 30, "\u0661"])
def test_a_revision_that_is_none_is_refused(site, revision):
    visitor = site()
    visitor.start()
    assert visitor.answer(1, revision=revision).status_code in (303, 400)
    assert answers(site) == []


def test_what_a_visitor_types_comes_back_as_text(site):
    visitor = site(study=True)
    reply = visitor.start(code='"><script>alert(1)</script>')
    assert "<script>alert" not in reply.text and "&lt;script&gt;" in reply.text
    visitor.start(code="P01")
    assert "<i>" not in visitor.get("/quiz/1?kept=<i>").text
    assert "had an answer already" not in visitor.get("/quiz/1?kept=\u00b2").text


def test_who_asks_too_often_waits_and_others_do_not(site, monkeypatch):
    monkeypatch.setattr("quiz.app.Bucket", partial(Bucket, clock=lambda: 0.0))  # nothing is refilled
    visitor = site(visits_per_minute=3)
    app = visitor.client.app
    assert [visitor.start().status_code for _ in range(3)] == [303] * 3
    reply = visitor.start()
    assert reply.status_code == 429 and int(reply.headers["retry-after"]) > 0 and "slower" in reply.text
    statuses = [visitor.get("/quiz/1").status_code for _ in range(160)]
    assert set(statuses) == {200, 429} and statuses[:100] == [200] * 100
    stranger = site(app)
    assert stranger.get("/").status_code == 200
    assert 429 in [stranger.get("/").status_code for _ in range(30)]


def test_a_long_round_all_wrong_shows_its_result_with_every_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("quiz.app.Bucket", partial(Bucket, clock=lambda: 0.0))  # nothing is refilled
    deck, store = open_answers(make_quiz(tmp_path, n=200, per_visit=200, per_cell=25).folder)
    visitor = Visitor(InProcess(make_app(deck, store, Options())))
    visitor.start()
    visit = store.visit(visitor.client.cookies["visit"])
    for position in range(1, 201):
        wrong = not deck.cards[store.tile(visit, position)].real
        assert store.answer(visit, position, Answer(wrong, 1), 0, False)
    pictures = re.findall(r'src="(/tile/\d+)"', visitor.get("/result").text)
    assert len(pictures) == 200 and {visitor.get(path).status_code for path in pictures} == {200}


def test_a_bucket_refills_and_forgets(monkeypatch):
    now = [0.0]
    bucket = Bucket(2, 0.5, clock=lambda: now[0])
    assert [bucket.wait("a") for _ in range(3)] == [0, 0, 2 + 1] and bucket.wait("b") == 0
    now[0] = 2.0
    assert bucket.wait("a") == 0 and bucket.wait("a") > 0
    monkeypatch.setattr("quiz.guard.KEPT", 10)
    for i in range(100):
        bucket.wait(str(i))
    assert len(bucket._left) <= 11


def test_addresses_of_one_household_count_together():
    assert address_key("2001:db8:1:2:3::4") == address_key("2001:db8:1:2:ffff::1") != address_key("2001:db8:1:3::4")
    assert address_key("192.0.2.1") != address_key("192.0.2.2") and address_key(None) == address_key("testclient")


def test_a_fault_of_ours_shows_nothing_of_itself(site, monkeypatch):
    visitor = site()
    visitor.start()
    monkeypatch.setattr(site.store, "tile", lambda *_: 1 / 0)
    reply = visitor.get("/quiz/1")
    assert reply.status_code == 500 and "our side" in reply.text and "division" not in reply.text
    assert reply.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
