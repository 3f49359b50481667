"""A real server that is killed, doubled and crowded: no answer that it acknowledged is lost, none is there twice."""

import os
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from quiz_visitors import Visitor, make_quiz, open_answers, serving

import benchmarks.quiz_load as load


def stored(folder):
    return [(r["visit"], r["position"], r["says_real"], r["sure"]) for r in open_answers(folder)[1].export()]


def kills(folder, times):
    """Answer while the server is killed at random moments; whoever gets no reply sends the same form again."""
    moments, acknowledged, cookies = random.Random(7), [], None
    for _ in range(times):
        with serving(folder) as (process, url):
            visitor = Visitor.at(url)
            if cookies:
                visitor.client.cookies.update(cookies)
            else:
                visitor.start()
                cookies = dict(visitor.client.cookies)
            killer = threading.Timer(moments.uniform(0, 0.25), process.kill)
            try:
                while True:
                    if visitor.get("/quiz").headers["location"] == "/result":
                        visitor.client.cookies.clear()
                        visitor.start()
                        cookies = dict(visitor.client.cookies)
                    position = int(visitor.get("/quiz").headers["location"].rsplit("/", 1)[1])
                    form = visitor.form(position, moments.choice(["real", "synthetic"]), moments.randint(1, 3))
                    assert visitor.send(position, form).status_code == 303
                    acknowledged.append((position, form["answer"] == "real", int(form["sure"])))
                    if killer.ident is None:
                        killer.start()
                    visitor.send(position, form)
            except httpx.TransportError as error:  # the server is gone
                assert process.wait(5) == -9, repr(error)
            visitor.client.close()
    rows = stored(folder)
    assert len({row[:2] for row in rows}) == len(rows)
    kept = Counter((position, bool(real), sure) for _, position, real, sure in rows)
    lost = Counter(acknowledged) - kept
    assert acknowledged and not lost, lost
    assert len(rows) - len(acknowledged) <= times, "at most the one under way when it was killed"
    assert open_answers(folder)[1]._connection().execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_kill_9_between_answers_loses_none_and_doubles_none(tmp_path):
    kills(make_quiz(tmp_path).folder, 3)


@pytest.mark.soak
def test_kill_9_fifty_times(tmp_path):
    kills(make_quiz(tmp_path).folder, 50)


def test_two_servers_serve_one_visit(tmp_path):
    folder = make_quiz(tmp_path).folder
    with serving(folder) as (_, a), serving(folder) as (_, b):
        first, second = Visitor.at(a), Visitor.at(b)
        first.start()
        second.client.cookies.update(dict(first.client.cookies))
        for position in range(1, 9):
            form = first.form(position)
            with ThreadPoolExecutor(2) as both:
                replies = list(both.map(Visitor.send, (first, second), (position,) * 2, (form,) * 2))
            assert [reply.status_code for reply in replies] == [303, 303]
        assert first.get("/result").text == second.get("/result").text
    assert [row[1] for row in stored(folder)] == list(range(1, 9))


def test_a_crowd_of_twenty_is_served_and_every_answer_is_there(tmp_path):
    """The load test, small and without looking at the clock."""
    deck = make_quiz(tmp_path)
    with serving(deck.folder, "--visits_per_minute", "1000") as (_, url):
        seen = load.crowd(url, visitors=20, tiles=4, pause=0.05)
    assert Counter(seen.statuses) == {200: 20 * (1 + 2 * 4), 303: 20 * (1 + 4)}
    rows = stored(deck.folder)
    assert len(rows) == 80 and Counter(row[:2] for row in rows).most_common(1)[0][1] == 1


@pytest.mark.soak
def test_two_hundred_visitors_at_once(tmp_path, capsys):
    deck, load_before = make_quiz(tmp_path, n=96, per_visit=20, per_cell=24), os.getloadavg()[0]
    with serving(deck.folder, "--visits_per_minute", "10000") as (_, url):
        began = time.monotonic()
        seen = load.crowd(url, visitors=200, tiles=20, pause=3.0)
        took = time.monotonic() - began
    with capsys.disabled():
        print(f"\n{load.told(seen, took)}; load before {load_before:.1f}")
    assert Counter(seen.statuses) == {200: 200 * (1 + 2 * 20), 303: 200 * (1 + 20)}
    rows = stored(deck.folder)
    assert len({row[:2] for row in rows}) == len(rows) == 4000
    if load_before < 1:  # else the time is the other work's
        assert seen.quantile(0.95) < 0.1
