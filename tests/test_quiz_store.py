"""Answers: none lost, none counted twice, whoever asks at the same time."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from quiz_visitors import make_quiz, open_answers

from common.errors import InputError
from quiz.store import Answer, Store

YES, NO = Answer(True, 2), Answer(False, 3, 4)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "answers.sqlite", "digest", {f"t{i}": i % 2 == 0 for i in range(8)})


def rows(store):
    return [(row["visit"], row["position"], row["says_real"], row["revision"]) for row in store.export()]


def test_a_commit_is_on_the_disk_before_it_is_acknowledged(store):
    db = store._connection()
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,), "FULL: fsync at each commit"
    assert db.execute("PRAGMA foreign_keys").fetchone() == (1,)


def test_a_form_sent_twice_counts_once(store):
    visit, _ = store.start(["t0", "t1"])
    assert store.answer(visit, 1, YES, revision=0, may_change=True)
    assert not store.answer(visit, 1, YES, revision=0, may_change=True)
    assert not store.answer(visit, 1, NO, revision=0, may_change=True), "a second tab that is behind"
    assert rows(store) == [(visit.id, 1, 1, 1)]


def test_an_answer_may_be_changed_where_it_may_and_the_other_tab_is_then_behind(store):
    visit, _ = store.start(["t0", "t1"])
    store.answer(visit, 1, YES, 0, True)
    assert not store.answer(visit, 1, NO, 1, may_change=False)
    assert store.answer(visit, 1, NO, 1, may_change=True)
    assert not store.answer(visit, 1, YES, 1, may_change=True)
    assert rows(store) == [(visit.id, 1, 0, 2)] and store.answer_at(visit, 1) == (NO, 2)


def test_only_the_next_tile_can_be_answered_and_nothing_after_the_end(store):
    visit, token = store.start(["t0", "t1", "t2"])
    assert not any(store.answer(visit, position, YES, 0, True) for position in (0, 2, 3, 4, -1))
    for position in (1, 2, 3):
        assert store.answer(visit, position, YES, 0, True)
    assert store.visit(token).finished and not store.answer(visit, 2, NO, 1, True)
    tally = store.tally(visit)  # t0 and t2 are real, t1 is not; all were called real
    assert (tally.hits, tally.signals, tally.false_alarms, tally.noises, tally.right) == (0, 1, 0, 2, 2)
    assert store.tallies() == [(None, tally, 1)]


def test_many_threads_answer_one_tile_and_one_of_them_counts(store):
    visit, _ = store.start(["t0", "t1"])
    taken, together = [], threading.Barrier(16)

    def send(answer):
        together.wait()
        taken.append(store.answer(visit, 1, answer, 0, True))

    threads = [threading.Thread(target=send, args=(Answer(i % 2 == 0, 1),)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False] * 15 + [True] and len(rows(store)) == 1


def test_two_servers_on_one_file_count_each_answer_once(tmp_path):
    truth = {f"t{i}": True for i in range(40)}
    stores = [Store(tmp_path / "answers.sqlite", "digest", truth) for _ in range(2)]
    visits = [stores[i % 2].start(list(truth))[0] for i in range(4)]
    together = threading.Barrier(2)

    def send(store):
        taken = 0
        for position in range(1, 41):
            for visit in visits:
                together.wait(30)
                taken += store.answer(visit, position, YES, 0, False)
        return taken

    with ThreadPoolExecutor(2) as servers:
        taken = list(servers.map(send, stores))
    assert sum(taken) == 160 and len(rows(stores[0])) == 160 and len(set(rows(stores[1]))) == 160
    assert sum(count for _, _, count in stores[0].tallies()) == 4


def test_a_code_goes_on_with_its_visit_and_the_earlier_browser_is_out(store):
    first, token = store.start(["t0", "t1"], "lay", "P01")
    store.answer(first, 1, YES, 0, False)
    again, other = store.start(["t2", "t3"], "pathologist", "P01")
    assert again.id == first.id and again.answered == 1 and again.experience == "lay"
    assert store.tile(again, 2) == "t1" and store.visit(token) is None and store.visit(other).id == first.id


def test_neither_token_nor_anything_else_of_the_visitor_is_stored(store, tmp_path):
    _, token = store.start(["t0"], "lay")
    everything = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert token.encode() not in everything
    columns = [row[1] for row in store._connection().execute("PRAGMA table_info(visits)")]
    assert not {"ip", "address", "name", "agent"} & set(columns)


def test_what_is_typed_is_a_value_never_sql(store):
    evil = "x' OR 1=1; DROP TABLE answers; --"
    visit, _ = store.start(["t0", "t1"], evil, evil)
    assert store.visit(evil) is None and store.start(["t0"], None, evil)[0].id == visit.id
    store.answer(visit, 1, YES, 0, True)
    assert [row["code"] for row in store.export()] == [evil]


def test_the_database_itself_refuses_what_is_no_answer(store):
    visit, _ = store.start(["t0", "t1"])
    for wrong in (Answer(True, 4), Answer(True, 1, 6)):
        with pytest.raises(sqlite3.IntegrityError):
            store.answer(visit, 1, wrong, 0, True)
    with pytest.raises(sqlite3.IntegrityError):
        store.start(["t0", "t0"])
    assert rows(store) == [] and store.answer(visit, 1, YES, 0, True), "and is not left locked"


def test_answers_of_another_quiz_or_no_database_are_refused(tmp_path):
    deck = make_quiz(tmp_path, n=16)
    open_answers(deck.folder)
    with pytest.raises(InputError, match="answers of another quiz"):
        Store(deck.folder / "answers.sqlite", "other", {})
    (tmp_path / "text").write_text("not a database, but long enough to be read as one" * 40)
    with pytest.raises(InputError, match="not the answers of a quiz"):
        Store(tmp_path / "text", "digest", {})
