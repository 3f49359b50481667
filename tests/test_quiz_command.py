"""serve_quiz.py as it is typed: what it prints, what it refuses, how it ends, and what it does not need."""

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pandas as pd
import pytest
from conftest import ROOT
from quiz_visitors import Visitor, make_quiz, open_answers, serving, write_sources

import serve_quiz
from datasets.keys import donor_of, split_of
from quiz.deck import Deck

WEB = ["fastapi", "starlette", "uvicorn", "jinja2"]
PATIENT = "GTEX-D03-0625.svs"  # of split test


def test_build_serve_export_as_typed(tmp_path, command, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path, per_cell=4)
    line = "serve_quiz.py build --real tiles/lung tiles/brain --synthetic generated --out quiz --tiles 16 --round 4"
    assert command(line) == 0
    said = capsys.readouterr().out
    assert (
        "16 tiles of 32 px, 32 um" in said
        and "4 brain real" in said
        and "python serve_quiz.py serve --quiz quiz" in said
    )
    assert command(line) == 0 and "kept" in capsys.readouterr().out
    with serving(tmp_path / "quiz") as (server, url):
        visitor = Visitor.at(url)
        visitor.start(experience="lay")
        for position in range(1, 5):
            visitor.answer(position, quality="3")
        assert visitor.get("/").headers.get("server") is None
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 75, "resumable"
    assert command("serve_quiz.py export --quiz quiz --out out") == 0
    assert "4 answers in 1 visits (1 finished) of 1 visitors" in capsys.readouterr().out
    table = pd.read_csv("out/answers.csv")
    found = json.loads((tmp_path / "out/analysis.json").read_text())
    assert len(table) == 4 and set(table["quality"]) == {3} and found["answers"] == 4
    assert found["all"]["accuracy"]["value"] == table["correct"].mean()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("build --real none --synthetic none --out q", "none: no such tile folder"),
        ("build --real tiles/lung --synthetic generated --out q --tiles 3", "--tiles 3: at least 4"),
        ("build --real tiles/lung --synthetic generated/gan_lung --out q --round 1", "--round 1: at least 2"),
        ("build --real tiles/lung --synthetic generated/gan_lung --out q --jpeg_quality 0", "from 1 to 95"),
        ("build --real tiles/lung --synthetic generated/gan_lung --out q --round 9", "has 8 tiles only"),
        ("build --real tiles/lung --synthetic generated/gan_lung --out package", "a part of the program"),
        ("serve --quiz none", "none: no quiz (quiz.json) in it; make one with serve_quiz.py build"),
        ("serve --quiz quiz --port 70000", "--port 70000: a number from 0 to 65535"),
        ("serve --quiz quiz --host 256.1.1.1", "--host 256.1.1.1"),
        ("serve --quiz quiz --codes codes", "add --study"),
        ("serve --quiz quiz --study --codes codes", "codes: line 2: no code"),
        ("serve --quiz quiz --study --codes twice", "twice: a code is there twice"),
        ("serve --quiz quiz --study --codes empty", "empty: no code in it"),
        ("serve --quiz quiz --visits_per_minute 0", "at least 1"),
        ("export --quiz none", "none: no quiz"),
        ("export --quiz quiz", "nobody has answered yet"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, command, capsys, monkeypatch, line, said):
    monkeypatch.chdir(tmp_path)
    make_quiz(tmp_path, n=16, per_visit=4, per_cell=4)
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").touch()
    for name, text in {"codes": "P01\nno code\n", "twice": "P01\nP01\n", "empty": "\n"}.items():
        (tmp_path / name).write_text(text)
    assert command(f"serve_quiz.py {line}") == 2
    err = [text for text in capsys.readouterr().err.splitlines() if not text.startswith("warning")]
    assert len(err) == 1 and said in err[0], err
    assert not (tmp_path / "q").exists()


def test_a_taken_port_is_named_and_nothing_is_served(tmp_path, command, capsys):
    deck = make_quiz(tmp_path, n=16, per_visit=4, per_cell=4)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command(f"serve_quiz.py serve --quiz {deck.folder} --port {port}") == 2
    assert f"--port {port}: Address already in use; choose another --port" in capsys.readouterr().err


def test_replies_do_not_wait_for_more_to_send():
    """asyncio switches Nagle's algorithm off where a socket says that it is TCP's; with it replies took 40 ms."""
    with serve_quiz.listen("127.0.0.1", 0) as found:
        assert found.proto == socket.IPPROTO_TCP and found.getsockname()[0] == "127.0.0.1"


def test_by_default_it_listens_to_this_machine_alone():
    args = serve_quiz.build_parser().parse_args(["serve", "--quiz", "q"])
    assert args.host == "127.0.0.1" and not args.behind_proxy


def test_a_stranger_cannot_say_who_it_is(tmp_path):
    """X-Forwarded-For counts behind a proxy only: else one address could pass for many."""
    folder = make_quiz(tmp_path, n=16, per_visit=4, per_cell=4).folder
    for words, last in (((), 429), (("--behind_proxy",), 303)):
        with serving(folder, "--visits_per_minute", "2", *words) as (_, url):
            statuses = []
            for i in range(3):
                client = httpx.Client(base_url=url, headers={"X-Forwarded-For": f"192.0.2.{i}"})
                reply = client.get("/")
                cookie = reply.headers["set-cookie"].split(";")[0]  # by hand: a Secure one is not sent over plain HTTP
                form = {"form": re.search(r'name="form" value="(\w+)"', reply.text).group(1)}
                statuses.append(client.post("/start", data=form, headers={"Cookie": cookie}).status_code)
            assert statuses == [303, 303, last], words


def test_nothing_is_told_to_anybody(tmp_path, monkeypatch):
    """FastAPI can send traces to whom the environment names; the quiz does not."""
    folder = make_quiz(tmp_path, n=16, per_visit=4, per_cell=4).folder
    with socket.create_server(("127.0.0.1", 0)) as collector:
        collector.settimeout(0.5)
        monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.getsockname()[1]}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")  # ms
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "10")
        with serving(folder) as (_, url):
            Visitor.at(url).start()
            with pytest.raises(TimeoutError):
                collector.accept()


def test_only_serving_needs_the_web_packages(tmp_path):
    deck = make_quiz(tmp_path, n=16, per_visit=4, per_cell=4)
    open_answers(deck.folder)
    code = f"import sys; sys.modules.update(dict.fromkeys({WEB!r}))\n"
    code += "import serve_quiz, prepare_data, quiz.app, quiz.build, quiz.analysis\n"
    code += f"args = serve_quiz.build_parser().parse_args(['export', '--quiz', {str(deck.folder)!r}])\n"
    code += "sys.exit(serve_quiz.main(args) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "0 answers" in done.stdout, done.stderr


def test_serving_starts_without_torch_and_pandas():
    code = "import sys, serve_quiz, quiz.app, quiz.store; print({'torch', 'pandas', 'scipy.stats'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_folders_of_generate_tissue_images_make_a_quiz_as_in_the_demo(tmp_path, command, monkeypatch, capsys):
    """Held-out donors' tiles of an RNA-GAN, and those of a GAN in second/, against real tiles of held-out donors."""
    import gan_toy

    gan_toy.make_cohort(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, loss in (("gan_lung", "wgan"), ("rna-gan_lung", "wganvae")):
        train = (
            f"histopathology_gan.py --config lung.json --model_dir checkpoints/{name} --loss_type {loss} --max_steps 1"
        )
        assert command(train) == 0
    line = "generate_tissue_images.py --checkpoint checkpoints/rna-gan_lung.model --config lung.json --sample_size 8"
    assert command(f"{line} --out generated/rna-gan_lung/held_out") == 0
    words = f"--patient1 {PATIENT} --checkpoint2 checkpoints/gan_lung.model --out generated/rna-gan_lung/patient"
    assert command(f"{line} {words}") == 0
    folders = "generated/rna-gan_lung/held_out generated/rna-gan_lung/patient/second"
    build = f"serve_quiz.py build --real tiles/lung --synthetic {folders} --split test --tiles 12 --round 4 --out quiz"
    assert command(build) == 0, capsys.readouterr().err
    deck = Deck("quiz")
    assert deck.models == ["gan", "rna-gan"] and deck.tissues == ["lung"] and len(deck.cards) == 12
    donors = {donor_of(Path(c.source.partition(".tar")[0]).name) for c in deck.cards.values() if c.real}
    assert donors and {split_of(donor, 99) for donor in donors} == {"test"}
    assert command(f"{build.replace('--synthetic', '--synthetic generated/rna-gan_lung/patient/real')}1") == 2
    assert "made by no model" in capsys.readouterr().err
