"""What is known about samples: GTEx's sample attributes and subject phenotypes, tissues, and the slides at hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import InputError, did_you_mean, shorten
from datasets.keys import SLIDE_SUFFIXES, known_donor, slide_key, slug
from datasets.text import guess_delimiter, open_text, refuse_web_page

SEXES = {"1": "male", "2": "female", "m": "male", "f": "female", "male": "male", "female": "female"}  # GTEx: SEX 1, 2
TISSUE_COLUMNS = ("SMTSD", "SMTS", "tissue")  # the site (Brain - Cortex), the organ (Brain), ours


def read_sheet(path: str | Path, key: str, needed: Sequence[str] = ()) -> pd.DataFrame:
    """Read a delimited sheet as text, indexed by its column `key`. InputError: a missing column, a repeated key."""
    with open_text(path) as file:
        header, above = file.readline(), 1  # lines down to the header
        while header.startswith("#") or (header and not header.strip()):
            header, above = file.readline(), above + 1
        refuse_web_page(path, header)
        delimiter = guess_delimiter(header)
        names = [name.strip().strip('"') for name in header.rstrip("\r\n").split(delimiter)]
        for name in (key, *needed):
            if name not in names:
                raise InputError(
                    f"{path}: no column {name} (found {shorten(names, 4)}){did_you_mean(name, names)}; "
                    f"a sheet with {' and '.join((key, *needed))} was expected"
                )
        try:
            sheet = pd.read_csv(
                file,
                sep=delimiter,
                names=names,
                dtype=str,
                keep_default_na=False,
                index_col=False,
                skip_blank_lines=False,  # so that rows can be counted as lines
            )
        except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
            raise InputError(f"{path}: {str(error).strip().splitlines()[0]}; mend the sheet") from None
    sheet.index += above + 1
    sheet = sheet.fillna("")
    sheet = sheet[(sheet != "").any(axis=1)]
    keys = sheet[key].str.strip()
    if keys.duplicated().any():
        name = keys[keys.duplicated()].iloc[0]
        lines = keys.index[keys == name].tolist()
        raise InputError(f"{path}: {key} {name} stands on lines {shorten(lines)}, expected once; keep one line of each")
    lines = sheet.index.tolist()
    sheet = sheet.set_index(pd.Index(keys, name=None))
    sheet.attrs["lines"] = lines  # of the file, one per row
    return sheet


def samples_of_tissues(path: str | Path, sheet: pd.DataFrame, tissues: Sequence[str]) -> dict[str, str]:
    """Return {sample: tissue slug} of the sheet's samples that are of one of `tissues`, all where none is given.

    A tissue is a site (SMTSD, "Brain - Cortex") or an organ (SMTS, "Brain": all of its sites), in any spelling with
    the same slug; the slug of what was asked for becomes the sample's tissue.
    """
    columns = [c for c in TISSUE_COLUMNS if c in sheet]
    if not columns:
        raise InputError(
            f"{path}: no column SMTSD (found {shorten(sheet.columns, 4)}); sample attributes were expected"
        )
    slugs = {c: sheet[c].map(slug) for c in columns}
    if not tissues:
        return slugs[columns[0]].to_dict()
    found: dict[str, str] = {}
    for tissue in tissues:
        mine = next((s.index[s == slug(tissue)] for s in slugs.values() if (s == slug(tissue)).any()), None)
        if mine is None:
            known = sorted({name for c in columns for name in sheet[c] if name})
            raise InputError(
                f"{path}: no sample of tissue {tissue!r}{did_you_mean(tissue, known)}; "
                f"one of its {len(known)} tissues was expected, such as {shorten(known, 3)}"
            )
        found |= dict.fromkeys(mine, slug(tissue))
    return found


def read_sexes(path: str | Path) -> pd.DataFrame:
    """Read subject phenotypes (SUBJID, SEX as 1/2 or words, AGE where there): columns sex, age, indexed by donor."""
    sheet = read_sheet(path, "SUBJID", ["SEX"])
    values = sheet["SEX"].str.strip().str.lower()
    unknown = sorted(set(values) - set(SEXES) - {"", "na", "unknown"})
    if unknown:
        line = sheet.attrs["lines"][int(values.eq(unknown[0]).argmax())]
        raise InputError(
            f"{path}: line {line}, column SEX: {unknown[0]!r}; 1 (male), 2 (female) or the words were expected"
        )
    said = pd.DataFrame({"sex": [SEXES.get(v, "") for v in values]}, index=sheet.index, dtype=object)
    return said.assign(age=sheet["AGE"]) if "AGE" in sheet else said


def sexes_of(obs: pd.DataFrame, phenotypes: str | Path) -> np.ndarray | None:
    """Return the sex of each row's donor (rows,), "" where unknown: of `phenotypes`, else of a column `sex`.

    None where there is neither.
    """
    if phenotypes:
        return obs["donor"].map(read_sexes(phenotypes)["sex"].to_dict()).fillna("").to_numpy(dtype=str)
    return obs["sex"].to_numpy(dtype=str) if "sex" in obs else None  # prepare_data.py expression --phenotypes


def read_slides(path: str | Path) -> list[str]:
    """Return slides' file names: of a folder and its sub-folders, or of a list (column wsi_file_name, or lines)."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such folder or list of slides; check --slides")
    if path.is_dir():
        names = [p.name for p in sorted(path.rglob("*")) if p.name.lower().endswith(SLIDE_SUFFIXES) and p.is_file()]
        expected = f"a folder with slides ({', '.join(SLIDE_SUFFIXES[2:6])}, ...)"
    else:
        with open_text(path) as file:
            lines = [line.strip() for line in file if line.strip()]
        header = [name.strip().strip('"') for name in lines[0].split(guess_delimiter(lines[0]))] if lines else []
        if "wsi_file_name" in header:
            sheet = read_sheet(path, "wsi_file_name")
            names = list(sheet.index)
        else:
            names = [Path(line).name for line in lines]
        expected = "a list with a column wsi_file_name or one name a line"
    if not names:
        raise InputError(f"{path}: no slides found; {expected} was expected")
    keys = pd.Index([slide_key(name) for name in names])
    if keys.has_duplicates:
        raise InputError(f"{path}: slide {keys[keys.duplicated()][0]} is there more than once; keep one of each name")
    return names


def donors_sex(samples: Sequence[str], donors: Sequence[str], sexes: pd.DataFrame) -> pd.DataFrame:
    """Return the phenotypes of each sample's donor, "" where the sheet has none."""
    ids = [known_donor(sample) or donor for sample, donor in zip(samples, donors, strict=True)]
    return sexes.reindex(ids).fillna("").set_index(pd.Index(samples, dtype=object))
