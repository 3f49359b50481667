"""What a visitor is told at the end: how they did, how others did, which tiles they got wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

from metrics.discrimination import d_prime, wilson
from quiz.deck import Deck
from quiz.store import EXPERIENCES, SURENESS, Answer, Tally

FEW = 5  # other visits below which nothing is compared: single people would show
BINS = 10


@dataclass(frozen=True)
class Group:
    """Finished visits of one kind of visitor: their share of right answers."""

    name: str
    visits: int
    accuracy: float


@dataclass(frozen=True)
class Standing:
    """A visitor's result, and all visitors'. `bars`: visits per tenth of right answers; `own_bar`: the visitor's."""

    tally: Tally
    interval: tuple[float, float]
    d_prime: float
    others: int
    compared: bool
    worse: float
    bars: list[int]
    own_bar: int
    mean: float
    groups: list[Group]

    @property
    def bar_shapes(self) -> list[tuple[float, float]]:
        """Return (y, height) of each bar in a drawing 100 high; a tenth with a visit shows at least a line."""
        top = max(self.bars)
        heights = [max(100 * n / top, 1.5) if n else 0.0 for n in self.bars]
        return [(100 - height, height) for height in heights]


def standing(own: Tally, everybody: Sequence[tuple[str | None, Tally, int]]) -> Standing:
    """Return the result of a finished visit, `own`, among all of them, (experience, counts, how many), its own too."""
    others = sum(count for _, _, count in everybody) - 1
    share = own.right / own.n
    worse = sum(count for _, t, count in everybody if t.right / t.n < share)
    bars = [0] * BINS
    for _, tally, count in everybody:
        bars[_bin(tally)] += count
    groups = []
    for name in EXPERIENCES:
        rows = [(t, count) for experience, t, count in everybody if experience == name]
        if (visits := sum(count for _, count in rows)) >= FEW:
            right, n = (sum(getattr(t, what) * count for t, count in rows) for what in ("right", "n"))
            groups.append(Group(name, visits, right / n))
    right, n = (sum(getattr(t, what) * count for _, t, count in everybody) for what in ("right", "n"))
    return Standing(
        own,
        wilson(own.right, own.n),
        float(d_prime(own.hits, own.signals, own.false_alarms, own.noises)),
        others,
        others >= FEW,
        worse / others if others else 0.0,
        bars,
        _bin(own),
        right / n,
        groups,
    )


def wrong_tiles(deck: Deck, answers: Sequence[tuple[int, str, Answer]]) -> list[dict]:
    """Return position, tissue, model, what was said and how sure, of the answers that are wrong."""
    rows = []
    for position, tile, answer in answers:
        card = deck.cards[tile]
        if card.real != answer.says_real:
            said = "real" if answer.says_real else "synthetic"
            row = {"position": position, "tissue": card.tissue.replace("_", " "), "model": card.model, "said": said}
            rows.append({**row, "real": card.real, "sure": SURENESS[answer.sure - 1]})
    return rows


def scale_bar(um: float) -> tuple[int | float, float]:
    """Return the length in um of a bar, 1, 2 or 5 times ten to n, at most a third of a tile of `um`; and its share."""
    fitting = [m * 10.0**e for e in range(-3, 6) for m in (1, 2, 5) if m * 10.0**e <= um / 3]
    length = fitting[-1]
    return (int(length) if length >= 1 else length), length / um


def _bin(tally: Tally) -> int:
    return min(BINS * tally.right // tally.n, BINS - 1)
