"""The making of a quiz: tiles chosen evenly from tissues, models and donors, made alike, named by chance."""

import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import InputError, shorten, warn
from common.files import atomic_path, read_json, write_json
from datasets.image_folder import generated_folders, manifest_tiles, read_image
from datasets.keys import donor_of, slug, split_of
from datasets.leaks import HELD_OUT, TrainedOn
from datasets.pictures import label_of
from datasets.tiles import MPP_TOLERANCE, open_stores
from quiz.deck import FORMAT, REAL, Deck
from quiz.pictures import ROUND_TRIP_QUALITY, made_alike, padded


@dataclass
class Pile:
    """Tiles of one donor or profile that a quiz may take: `names` say where each is, `read(k)` -> uint8 (H, W, 3)."""

    tissue: str
    model: str  # REAL, or who made them
    donor: str
    names: list[str]
    read: Callable[[int], np.ndarray]
    side: int  # px
    um: float  # side of a tile in micrometres
    where: str  # folder or store, for messages
    slide: str = ""  # of real tiles
    made_by: str = ""  # checkpoint of generated ones


def real_piles(folders: Sequence[str | Path], split: str | None, split_seed: int) -> list[Pile]:
    """Return a pile per store; a folder is named after its tissue. With `split` only that split's donors."""
    piles = []
    for folder in map(Path, folders):
        tissue = slug(folder.resolve().name)
        own = []
        for slide, store in open_stores(folder).items():
            donor = donor_of(slide)
            if len(store) and split in (None, split_of(donor, split_seed)):
                names = [f"{store.path}#{k}" for k in range(len(store))]
                um = store.mpp * store.tile_size
                size = (store.tile_size, um)
                own.append(Pile(tissue, REAL, donor, names, store.read, *size, str(store.json_path), slide))
        if not own:
            raise InputError(f"{folder}: no tiles of donors of split {split}; add donors, or leave --split away")
        piles += own
    return piles


def synthetic_piles(folders: Sequence[str | Path], tissues: Sequence[str]) -> list[Pile]:
    """Return a pile per profile of each folder of generate_tissue_images.py; `tissues` are the real tiles'."""
    piles, seen = [], set()
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder of generated tiles; make it with generate_tissue_images.py")
        places = generated_folders(folder)
        if not places:
            raise InputError(f"{folder}: no manifest.json of generate_tissue_images.py in it; name its --out folder")
        for place in places:
            if place.resolve() not in seen:
                seen.add(place.resolve())
                piles += _generated(place, tissues)
    return piles


def _generated(place: Path, tissues: Sequence[str]) -> list[Pile]:
    path = place / "manifest.json"
    about = read_json(path).get("made_from")
    about = about if isinstance(about, dict) else {}
    mpp, side = about.get("mpp"), about.get("img_size")
    if not all(isinstance(x, int | float) and x > 0 for x in (mpp, side)):
        raise InputError(f"{path}: does not say how large its tiles are (mpp, img_size); generate them again")
    if about.get("kind") not in ("gan", "rna-gan"):
        raise InputError(f"{path}: its tiles are of kind {about.get('kind')!r}, made by no model; name other folders")
    tissue = label_of(place, about, tissues)
    model = str(about.get("run") or about["kind"])
    model = model.removesuffix(tissue).rstrip("_-") or model  # rna-gan_lung and rna-gan_brain are one model
    if model == REAL:
        raise InputError(f"{path}: its model is named {REAL!r}, as real tiles are; rename the run")
    by_profile: dict[str, list[Path]] = {}
    for tile in manifest_tiles(path) or []:
        by_profile.setdefault(str(tile.get("profile") or ""), []).append(place / tile["file"])
    return [
        Pile(
            tissue,
            model,
            profile or str(place),
            [str(file) for file in files],
            lambda k, files=files: read_image(files[k]),
            int(side),
            float(mpp) * side,
            str(path),
            made_by=str(about.get("checkpoint") or ""),
        )
        for profile, files in by_profile.items()
    ]


def choose(piles: Sequence[Pile], n: int, rng: np.random.Generator) -> list[tuple[Pile, int]]:
    """Return at most `n` tiles, half of them real: the same number per tissue, models alike, donors in turn.

    InputError where a tissue lacks one kind. With too few tiles in some tissue all give fewer, with a warning.
    """
    cells: dict[str, dict[str, list[Pile]]] = {}
    for pile in piles:
        cells.setdefault(pile.tissue, {}).setdefault(pile.model, []).append(pile)
    for tissue, models in cells.items():
        if REAL not in models or len(models) == 1:
            lacking, flag = ("real", "--real") if REAL not in models else ("synthetic", "--synthetic")
            raise InputError(f"{tissue}: no {lacking} tiles; a quiz needs both kinds of each tissue: add {flag}")
    wanted = n // (2 * len(cells))
    extra = {tissue: rng.permutation(len(models) - 1) for tissue, models in sorted(cells.items())}

    def quotas(tissue: str, half: int) -> dict[str, int]:
        models = sorted(set(cells[tissue]) - {REAL})
        more = set(extra[tissue][: half % len(models)].tolist())
        return {REAL: half} | {m: half // len(models) + (i in more) for i, m in enumerate(models)}

    def enough(half: int) -> bool:
        return all(q <= sum(len(p.names) for p in cells[t][m]) for t in cells for m, q in quotas(t, half).items())

    half = next((h for h in range(wanted, 0, -1) if enough(h)), 0)
    if not half:
        raise InputError(f"--tiles {n}: no tile for each of {len(cells)} tissues and both kinds; ask for more")
    if half < wanted:
        sizes = {f"{t} {m}": sum(len(p.names) for p in of_m) for t, ms in cells.items() for m, of_m in ms.items()}
        least = min(sizes, key=sizes.__getitem__)
        warn(f"--tiles {n}: {least} has {sizes[least]} tiles; {2 * half * len(cells)} are taken, all tissues alike")
    return [
        picked
        for tissue in sorted(cells)
        for model, quota in sorted(quotas(tissue, half).items())
        for picked in _in_turn(cells[tissue][model], quota, rng)
    ]


def _in_turn(piles: Sequence[Pile], n: int, rng: np.random.Generator) -> list[tuple[Pile, int]]:
    """Return n (pile, k): from each donor in turn, donors and their tiles in random order."""
    of_donor: dict[str, list[tuple[Pile, int]]] = {}
    for pile in piles:
        of_donor.setdefault(pile.donor, []).extend((pile, k) for k in range(len(pile.names)))
    queues = [[tiles[i] for i in rng.permutation(len(tiles))] for _, tiles in sorted(of_donor.items())]
    queues = [queues[i] for i in rng.permutation(len(queues))]
    longest = max(map(len, queues))
    turns = [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
    return turns[:n]


def one_size(piles: Sequence[Pile]) -> tuple[int, float]:
    """Return the side in pixels (the smallest) and in micrometres. InputError where tiles show fields of other sizes.

    A field of another size would tell real from synthetic, on the scale bar or by the size of its nuclei.
    """
    first = piles[0]
    for pile in piles:
        if abs(pile.um / first.um - 1) > MPP_TOLERANCE:
            raise InputError(
                f"{pile.where}: tiles of {pile.um:.4g} um, {first.where} has {first.um:.4g} um: their scale would tell "
                "them apart; cut the real tiles with the --mpp and --tile_size that the GAN was trained on"
            )
    return min(pile.side for pile in piles), first.um


def refuse_seen(piles: Sequence[Pile], split: str | None, split_seed: int) -> None:
    """InputError where a donor called held out trained one of the models."""
    if split not in HELD_OUT:
        return
    real = [pile for pile in piles if pile.model == REAL]
    donors = pd.DataFrame({"donor": [p.donor for p in real]}, [p.slide for p in real])
    for path in sorted({p.made_by for p in piles} - {""}):
        if model := TrainedOn.read(path):
            model.refuse(donors, split, f"--split_seed {split_seed}")


def build_quiz(
    real: Sequence[str | Path],
    synthetic: Sequence[str | Path],
    out: str | Path,
    n: int = 200,
    per_visit: int = 20,
    seed: int = 99,
    split: str | None = None,
    split_seed: int = 99,
    jpeg_quality: int = ROUND_TRIP_QUALITY,
) -> tuple[Deck, bool]:
    """Write a quiz into `out`; return it, and whether it was there already.

    Which tiles are in it depends on the input and `seed`; their names and the quiz's key are of chance, so that who
    knows the seed does not know the tiles. InputError where `out` holds another quiz that has answers.
    """
    out = Path(out)
    if (out / "__init__.py").exists():
        raise InputError(f"{out}: holds a part of the program; choose another --out, such as quizzes/first")
    settings: dict[str, Any] = {"real": [str(p) for p in real], "synthetic": [str(p) for p in synthetic]}
    settings |= {"tiles": n, "round": per_visit, "seed": seed, "split": split, "split_seed": split_seed}
    settings |= {"jpeg_quality": jpeg_quality}
    piles = real_piles(real, split, split_seed)
    piles += synthetic_piles(synthetic, sorted({p.tissue for p in piles}))
    refuse_seen(piles, split, split_seed)
    side, um = one_size(piles)
    rng = np.random.default_rng(seed)
    chosen = choose(piles, n, rng)
    if per_visit > len(chosen):
        raise InputError(f"--round {per_visit}: the quiz has {len(chosen)} tiles only; ask for fewer, or add tiles")
    sources = sorted(pile.names[k] for pile, k in chosen)
    if (out / "quiz.json").exists():
        before = Deck(out)
        if before.settings == settings and sorted(c.source for c in before.cards.values()) == sources:
            return before, True
        if (out / "answers.sqlite").exists():
            raise InputError(f"{out}: holds another quiz, with answers; choose another --out, or move the folder away")
        (out / "quiz.json").unlink()  # from here until the end the folder has no quiz, never a mixed one
    pictures = padded([made_alike(pile.read(k), side, jpeg_quality) for pile, k in chosen])
    rows = []
    for (pile, k), picture in zip(chosen, pictures, strict=True):
        name = secrets.token_hex(8)
        with atomic_path(out / "tiles" / f"{name}.jpg") as partial:
            partial.write_bytes(picture)
        rows.append({"id": name, "tissue": pile.tissue, "model": pile.model, "source": pile.names[k]})
    keep = {f"{row['id']}.jpg" for row in rows}
    for path in (out / "tiles").glob("*.jpg"):  # of an earlier build
        if path.name not in keep:
            path.unlink()
    rows.sort(key=lambda row: row["id"])
    head = {"format": FORMAT, "side": side, "um": um, "bytes": len(pictures[0]), "round": per_visit}
    head |= {"key": secrets.token_hex(32), "settings": settings}
    write_json(out / "quiz.json", {**head, "tiles": rows})
    return Deck(out), False


def counted(deck: Deck) -> str:
    """Return how many tiles of what a quiz has, in words."""
    counts: Mapping[tuple[str, str], int] = Counter((c.tissue, c.model) for c in deck.cards.values())
    return shorten([f"{n} {tissue} {model}" for (tissue, model), n in sorted(counts.items())], 12)
