"""A small quiz, and visitors who take it: what the tests of the quiz share."""

import asyncio
import json
import re
import subprocess
import sys
from contextlib import contextmanager

import httpx
import numpy as np

import serve_quiz
from datasets.tiles import encode_image, write_store
from quiz.build import build_quiz
from quiz.deck import Deck
from quiz.store import Store

SIDE = 32


def scene(rng, side=SIDE):
    """A painted tile, uint8 (side, side, 3): a wall with nuclei, another each time."""
    y, x = np.mgrid[:side, :side]
    image = np.full((side, side, 3), (246, 243, 245), float)
    wall = np.abs(x * rng.normal() + y * rng.normal() - rng.uniform(0, side)) < side / 5
    image[wall] = (224, 150, 190)
    for _ in range(4):
        near = np.hypot(x - rng.uniform(0, side), y - rng.uniform(0, side)) < side / 10
        image[near] = (70, 55, 130)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def write_generated(folder, tissue, model, images, mpp=1.0, **about):
    """A folder as generate_tissue_images.py leaves it."""
    folder.mkdir(parents=True)
    for k, image in enumerate(images):
        (folder / f"seed99_{k:05d}.png").write_bytes(encode_image(image, "png"))
    made_from = {"kind": "rna-gan", "run": f"{model}_{tissue}", "tissues": [tissue], "mpp": mpp}
    made_from |= {"img_size": images[0].shape[0], "profile": None, **about}
    tiles = [{"file": f"seed99_{k:05d}.png", "index": k} for k in range(len(images))]
    manifest = {"made_from": made_from, "finished": True, "n": len(images), "tiles": tiles}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_sources(root, per_cell=12, tissues=("lung", "brain"), models=("gan", "rna-gan"), side=SIDE, seed=1):
    """Stores tiles/<tissue> of 3 donors, twice the side at 0.5 um, and generated/<model>_<tissue> at 1 um per pixel."""
    rng = np.random.default_rng(seed)
    for tissue in tissues:
        for donor in range(3):
            tiles = [(0, 0, 1.0, scene(rng, 2 * side)) for _ in range(per_cell)]
            write_store(root / "tiles" / tissue, f"GTEX-D{donor}-0625", tiles, mpp=0.5, tile_size=2 * side)
        for model in models:
            images = [scene(rng, side) for _ in range(per_cell)]
            write_generated(root / "generated" / f"{model}_{tissue}", tissue, model, images)
    return [root / "tiles" / tissue for tissue in tissues], [root / "generated"]


def make_quiz(root, n=48, per_visit=8, **sizes):
    """A quiz in root/quiz; returns its deck."""
    real, synthetic = write_sources(root, **sizes)
    return build_quiz(real, synthetic, root / "quiz", n, per_visit)[0]


@contextmanager
def serving(folder, *words):
    """A server process of its own; yields it and its address, and ends it if the test has not."""
    command = [sys.executable, serve_quiz.__file__, "serve", "--quiz", str(folder), "--port", "0", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process, re.search(r"http://\S+", process.stdout.readline()).group()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def open_answers(folder):
    """The deck and the store of a quiz."""
    deck = Deck(folder)
    truth = {card.id: card.real for card in deck.cards.values()}
    return deck, Store(deck.folder / "answers.sqlite", deck.digest, truth)


class InProcess:
    """An httpx client of an ASGI application in this process, without a network and without await."""

    def __init__(self, app, base_url="http://quiz.test"):
        self.app, self.runner = app, asyncio.Runner()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=("192.0.2.1", 50000))
        self.client = httpx.AsyncClient(transport=transport, base_url=base_url)
        self.cookies = self.client.cookies

    def get(self, path, **options):
        return self.runner.run(self.client.get(path, **options))

    def post(self, path, **options):
        return self.runner.run(self.client.post(path, **options))


class Visitor:
    """A browser of few features: keeps cookies, follows no redirect, reads forms."""

    def __init__(self, client):
        self.client = client

    @staticmethod
    def at(url):
        return Visitor(httpx.Client(base_url=url, timeout=30))

    def token(self, path="/"):
        return re.search(r'name="form" value="(\w+)"', self.client.get(path).text).group(1)

    def start(self, **fields):
        return self.client.post("/start", data={"form": self.token(), **fields}, follow_redirects=False)

    def get(self, path):
        return self.client.get(path, follow_redirects=False)

    def form(self, position, answer="real", sure=2, **fields):
        """The fields of a tile's form, filled in."""
        text = self.client.get(f"/quiz/{position}", follow_redirects=False).text
        hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="(\w*)">', text))
        return {**hidden, "answer": answer, "sure": str(sure), **fields}

    def send(self, position, form):
        return self.client.post(f"/quiz/{position}", data=form, follow_redirects=False)

    def answer(self, position, answer="real", sure=2, **fields):
        return self.send(position, self.form(position, answer, sure, **fields))
