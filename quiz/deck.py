"""A quiz as it lies on disk, and which of its tiles a visitor is shown in which order.

`<quiz>/quiz.json` says of each tile what it is; it never leaves the server. `<quiz>/tiles/<id>.jpg` are the pictures,
named by chance. `<quiz>/answers.sqlite` (quiz/store.py) holds the answers.
"""

import hashlib
import hmac
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import read_json

FORMAT = "tile quiz 1"
REAL = "real"  # the model of a tile that none made


@dataclass(frozen=True)
class Card:
    """One tile: its id, its tissue, who made it (REAL or a model), where it came from."""

    id: str
    tissue: str
    model: str
    source: str

    @property
    def real(self) -> bool:
        """Whether it is a real tile."""
        return self.model == REAL


class Deck:
    """The tiles of a quiz: `cards` by id, `side` in pixels, `um` the side of every tile in micrometres."""

    def __init__(self, folder: str | Path) -> None:
        """Open a quiz's folder. InputError where it is none, or tiles are missing."""
        self.folder = Path(folder)
        path = self.folder / "quiz.json"
        if not path.exists():
            raise InputError(f"{folder}: no quiz (quiz.json) in it; make one with serve_quiz.py build --out {folder}")
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"{path}: not a quiz ({FORMAT!r} expected); make it with serve_quiz.py build")
        self.side: int = content["side"]
        self.um: float = content["um"]
        self.bytes: int = content["bytes"]
        self.round: int = content["round"]
        self.key: bytes = bytes.fromhex(content["key"])
        self.settings: dict[str, Any] = content["settings"]
        self.cards = {row["id"]: Card(**row) for row in content["tiles"]}
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()
        for card in self.cards.values():
            file = self.path(card.id)
            if not file.exists() or file.stat().st_size != self.bytes:
                raise InputError(f"{file}: missing or damaged, though quiz.json lists it; build the quiz again")

    @property
    def tissues(self) -> list[str]:
        """The tissues, sorted."""
        return sorted({card.tissue for card in self.cards.values()})

    @property
    def models(self) -> list[str]:
        """The models, sorted, without REAL."""
        return sorted({card.model for card in self.cards.values()} - {REAL})

    def path(self, card_id: str) -> Path:
        """Return a tile's file; the id is one of the quiz's own, never what a visitor typed."""
        return self.folder / "tiles" / f"{self.cards[card_id].id}.jpg"

    def deal(self, rng: np.random.Generator, n: int | None = None, seen: Collection[str] = ()) -> list[str]:
        """Return n tile ids (the quiz's round) in random order: half real, tissues alike, models alike within each.

        Those `seen` only where there are not enough others.
        """
        return deal(list(self.cards.values()), n or self.round, rng, seen)

    def deal_for(self, code: str, n: int | None = None) -> list[str]:
        """Return the tiles of a participant's code: always the same, and nobody without the quiz's key can know."""
        return self.deal(np.random.default_rng(seed_of(self.key, code)), n)


def seed_of(key: bytes, text: str) -> int:
    """Return a seed that only `key` and `text` decide."""
    return int.from_bytes(hmac.digest(key, text.encode(), "sha256"), "big")


def shares(total: int, n: int, rng: np.random.Generator) -> list[int]:
    """Return `total` divided by n as evenly as whole numbers allow; who gets one more is drawn."""
    more = set(rng.permutation(n)[: total % n].tolist())
    return [total // n + (i in more) for i in range(n)]


def deal(cards: Sequence[Card], n: int, rng: np.random.Generator, seen: Collection[str] = ()) -> list[str]:
    """Return n ids of `cards` in random order, balanced by truth, tissue and model as far as there are tiles."""
    n = min(n, len(cards))
    cells: dict[tuple[str, str], list[str]] = {}
    for card in cards:
        cells.setdefault((card.tissue, card.model), []).append(card.id)
    tissues = sorted({card.tissue for card in cards})
    chosen: list[str] = []
    per_tissue = shares(n // 2, len(tissues), rng)  # the same of both kinds: a tissue tells nothing
    for tissue, half in zip(tissues, per_tissue, strict=True):
        models = sorted(model for t, model in cells if t == tissue and model != REAL)
        quotas = {REAL: half} | dict(zip(models, shares(half, len(models), rng), strict=True))
        for model, quota in quotas.items():
            ids = cells[tissue, model]
            chosen += sorted((ids[i] for i in rng.permutation(len(ids))), key=lambda name: name in seen)[:quota]
    left = sorted({card.id for card in cards} - set(chosen))  # where a cell was short, or n is odd
    chosen += [left[i] for i in rng.permutation(len(left))[: n - len(chosen)]]
    return [chosen[i] for i in rng.permutation(len(chosen))]


CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


def check_code(code: str) -> str | None:
    """Return a participant's code, or None where it cannot be one: 1 to 32 letters, digits, - and _."""
    code = code.strip()
    return code if CODE.fullmatch(code) else None
