"""Classify tiles: k-fold on one table, or train on one table and test on another (synthetic to real, and the reverse).

    python wsi_model.py --patch_data_path images_form/ --csv_path real_toy_example.csv
    python wsi_model.py --patch_data_path images_form/ --train_csv rna-gan_toy_example.csv \\
        --test_csv real_toy_example.csv
    python wsi_model.py --patch_data_path images_form/ --csv_path real_toy_example.csv --shuffle_labels

Reads   a CSV with columns wsi_file_names (pictures, relative to --patch_data_path), Labels and, best, group (the donor:
        no group is in a training and a test fold at once); the published names wsi_file_name and label work too.
        Where rows of --test_csv say split test or val, a donor of theirs in --train_csv, or in the training of the GAN
        that its column made_by names, is refused.
        Tables are looked for as given, else under --patch_data_path. prepare_data.py toy writes them.
Writes  <out>/metrics.json: accuracy, weighted F1 and AUC with 95 % intervals (bootstrap over groups), n per class,
        folds, seed, backbone, digest of its weights, settings; <out>/predictions.csv: one row per tested picture.
        Default <out>: classifier/<csv stem>/, classifier/<train stem>_to_<test stem>/ (with _shuffled appended).

--backbone small      a small CNN trained from scratch (default; for small tiles)
--backbone resnet50   torchvision's ResNet-50, all weights trained from scratch (published: frozen at random)
--backbone FILE       a torchvision state dict, frozen, a linear head trained on its features (--finetune: all)
--pretrain SOURCE     first learn features without labels (SimCLR: models/contrastive.py) on the pictures of a folder or
                      of a table, such as synthetic tiles; for the backbones that are trained as a whole. metrics.json
                      says on what, and which GAN made them; one that has seen a held-out donor of the table is refused,
                      one that has seen another of its donors gives a warning
--train_tiles N       train on N tiles of each fold's training part at most, seeded, all classes and groups in turn; of
                      few tiles an epoch is a few steps: add --patience 0, or the early stop comes before they learned
--shuffle_labels      control: labels shuffled within each table, for training and for testing; expect chance
"""

import argparse
import csv
import io
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.errors import InputError, command_parser, run_command, shorten, warn
from common.files import sha256_of, write_json, write_text
from common.run import pick_device, seed_for
from datasets.image_table import ImageTable, Pictures, named, read_image_table
from datasets.leaks import donor_digests
from datasets.table_leaks import read_unlabelled, refuse_leaks
from metrics.classification import LEVEL, RESAMPLES, inner_split, intervals, make_folds, scores, some_of
from models.classifier import BACKBONES, Classifier, FitSettings, fit, frozen_features, predict
from models.contrastive import VIEWS, PretrainSettings, pretrain

DEFAULTS = FitSettings()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = command_parser(__doc__)
    parser.add_argument("--patch_data_path", default=".", help="folder that the tables' paths start from")
    parser.add_argument("--csv_path", help="table for k-fold cross-validation")
    parser.add_argument("--train_csv", help="table to train on (with --test_csv)")
    parser.add_argument("--test_csv", help="table to test on")
    parser.add_argument("--backbone", default="small", help="small, resnet50 or a weights file (see above)")
    parser.add_argument("--finetune", action="store_true", help="train all weights of a file, not a head alone")
    parser.add_argument("--pretrain", metavar="FOLDER_OR_TABLE", help="unlabelled pictures to pre-train on (see above)")
    parser.add_argument("--pretrain_epochs", type=int, default=PretrainSettings.num_epochs, help="(%(default)s)")
    parser.add_argument("--train_tiles", type=int, default=0, help="tiles to train on, in each fold; 0: all")
    parser.add_argument("--folds", type=int, default=5, help="folds of --csv_path (published: 5)")
    parser.add_argument("--shuffle_labels", action="store_true", help="control: shuffled labels")
    parser.add_argument("--img_size", type=int, default=0, help="side in pixels; 0: the smallest picture's side")
    parser.add_argument("--num_epochs", type=int, default=DEFAULTS.num_epochs, help="published: %(default)s")
    parser.add_argument("--batch_size", type=int, default=DEFAULTS.batch_size, help="published: %(default)s")
    parser.add_argument("--lr", type=float, default=DEFAULTS.lr, help="AdamW's rate; published: %(default)s")
    parser.add_argument("--weight_decay", type=float, default=DEFAULTS.weight_decay, help="published: %(default)s")
    parser.add_argument(
        "--patience", type=int, default=DEFAULTS.patience, help="epochs; 0: no early stop (%(default)s)"
    )
    parser.add_argument("--jitter", action="store_true", help="mild colour jitter beside flips and turns")
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--device", default="0", help="a GPU's index (else the CPU), cuda (insists) or cpu")
    parser.add_argument("--out", help="folder for metrics.json and predictions.csv")
    return parser


def main(args: argparse.Namespace) -> int | None:
    """Read the tables, train once per fold (or once), test, write metrics.json and predictions.csv."""
    # Settings.
    started = time.monotonic()
    _check(args)
    settings = FitSettings(**{key: getattr(args, key) for key in asdict(DEFAULTS)})
    out = Path(args.out) if args.out else _default_out(args)

    # Data: (N,) labels and groups over all tables, pictures read once.
    tables = [read_image_table(p, args.patch_data_path) for p in (args.csv_path, args.train_csv, args.test_csv) if p]
    classes = _classes(tables)
    labels = np.concatenate([np.searchsorted(classes, t.labels) for t in tables])  # (N,) int
    groups = np.concatenate([t.groups for t in tables]) if all(t.groups is not None for t in tables) else None
    table_of_row = np.repeat(np.arange(len(tables)), [len(t.names) for t in tables])
    if args.test_csv:
        refuse_leaks(*tables)
    fold_of_row = _folds(args, tables, labels, groups, table_of_row)
    device = pick_device(args.device)
    pictures = Pictures([p for t in tables for p in t.paths], args.img_size or min(t.side for t in tables))
    classifier = Classifier(args.backbone, len(classes), args.seed, args.finetune)
    unlabelled, seen = None, 0
    if args.pretrain:
        unlabelled, seen = read_unlabelled(args.pretrain, args.patch_data_path, tables[-1])
    pictures.keep()
    if args.shuffle_labels:
        for number in range(len(tables)):
            rows = np.flatnonzero(table_of_row == number)
            labels[rows] = labels[np.random.default_rng(seed_for(args.seed, "shuffle", number)).permutation(rows)]

    # Model: features are learned without labels once, for all folds, or frozen ones computed once.
    pretraining = None
    if unlabelled is not None:
        chosen = PretrainSettings(num_epochs=args.pretrain_epochs)
        shown = Pictures(unlabelled.paths, pictures.img_size)
        shown.keep()
        seed = seed_for(args.seed, "pretrain")
        weights, history = pretrain(classifier.network(0), shown.read, len(shown), chosen, seed, device)
        classifier.start_from(weights, f"self-supervised pre-training on {len(shown)} tiles")
        pretraining = unlabelled.describe() | {"settings": asdict(chosen), "loss": history, "augmentation": VIEWS}
        pretraining["tested_donors_seen"] = seen
    read = pictures.read
    if classifier.features is not None:
        features = frozen_features(classifier.features, pictures.read, len(pictures), device)
        read = features.__getitem__

    # Train and test, fold by fold.
    probabilities = np.full((len(labels), len(classes)), np.nan, np.float32)
    folds = []
    for fold in tqdm(sorted(set(fold_of_row) - {-1}), desc="folds", unit="fold", disable=None):
        test = np.flatnonzero(fold_of_row == fold)
        rest = np.flatnonzero(fold_of_row == -1) if args.test_csv else np.flatnonzero(fold_of_row != fold)
        if args.train_tiles:
            rest = rest[some_of(labels[rest], None if groups is None else groups[rest], args.train_tiles, args.seed)]
        inner, val = inner_split(labels[rest], None if groups is None else groups[rest], args.seed)
        network = classifier.network(int(fold))
        history = fit(
            network, read, labels, rest[inner], rest[val], settings, seed_for(args.seed, "fold", int(fold)), device
        )
        probabilities[test] = predict(network, read, test, device)
        best = int(np.argmin([h["val_loss"] for h in history])) + 1
        folds.append(
            {
                "n_train": len(inner),
                "n_validation": len(val),
                "n_test": len(test),
                "epochs": len(history),
                "best_epoch": best,
                **_plain(scores(labels[test], probabilities[test])),
            }
        )

    # Judge and write.
    tested = np.flatnonzero(fold_of_row != -1)
    tested_groups = None if groups is None else groups[tested]
    found = scores(labels[tested], probabilities[tested])
    limits = intervals(labels[tested], probabilities[tested], tested_groups, args.seed)
    unit = "tiles (no column `group`)" if groups is None else f"{len(np.unique(tested_groups))} groups"
    metrics = {
        "task": "train_test" if args.test_csv else "k_fold",
        "shuffled_labels": args.shuffle_labels,
        "tables": [_describe(t) for t in tables],
        "classes": classes.tolist(),
        "n_test": len(tested),
        "n_test_per_class": {c: int((labels[tested] == i).sum()) for i, c in enumerate(classes.tolist())},
        "scores": {k: {"value": v, "interval": limits[k]} for k, v in _plain(found).items()},
        "interval_method": f"{LEVEL:.0%} percentile bootstrap, {RESAMPLES} resamples of {unit}, all test rows pooled",
        "folds_by": "tile" if groups is None else "group",
        "folds": folds,
        "groups_in_train_and_test": _shared_groups(tables) if args.test_csv else 0,
        "trained_donors": donor_digests(tables[0].groups) if args.test_csv and groups is not None else None,
        "backbone": classifier.label,
        "weights_digest": classifier.digest,
        "weights_digest_of": "file" if Path(args.backbone).is_file() else "initial weights of the first network",
        "img_size": pictures.img_size,
        "pretraining": pretraining,
        "train_tiles": args.train_tiles,
        "augmentation": _augmentation(classifier.features is not None, args.jitter),
        "seed": args.seed,
        "settings": asdict(settings),
    }
    write_json(out / "metrics.json", metrics)
    write_text(out / "predictions.csv", _predictions(tables, classes, labels, groups, fold_of_row, probabilities))
    _print(metrics, out, time.monotonic() - started)
    return None


def _check(args: argparse.Namespace) -> None:
    pair = bool(args.train_csv), bool(args.test_csv)
    if bool(args.csv_path) == any(pair) or pair[0] != pair[1]:
        raise InputError("name either --csv_path (k-fold), or both --train_csv and --test_csv")
    least_of = {"folds": 2, "num_epochs": 1, "batch_size": 2, "img_size": 0, "patience": 0}
    least_of |= {"pretrain_epochs": 1, "train_tiles": 0}
    for name, least in least_of.items():
        if getattr(args, name) < least:
            raise InputError(f"--{name} {getattr(args, name)}: at least {least} was expected")
    if 0 < args.img_size < 16:
        raise InputError(f"--img_size {args.img_size}: at least 16 pixels, or 0 for the smallest picture's side")
    if not 0 < args.lr < float("inf"):
        raise InputError(f"--lr {args.lr}: a positive rate was expected")
    if args.pretrain and args.backbone not in BACKBONES:
        raise InputError(
            f"--pretrain: a backbone that is trained as a whole was expected ({', '.join(BACKBONES)}), not the "
            f"weights of {args.backbone}; leave one of the two out"
        )
    if not 0 <= args.weight_decay < float("inf") or args.seed < 0:
        raise InputError(f"--weight_decay {args.weight_decay}, --seed {args.seed}: 0 or more was expected")


def _default_out(args: argparse.Namespace) -> Path:
    stems = [Path(p).stem for p in (args.csv_path, args.train_csv, args.test_csv) if p]
    return Path("classifier") / ("_to_".join(stems) + ("_shuffled" if args.shuffle_labels else ""))


def _classes(tables: list[ImageTable]) -> np.ndarray:
    """Return the sorted class names; InputError where one is alone, or tested but never trained."""
    classes = np.unique(tables[0].labels)
    if len(classes) < 2:
        raise InputError(f"{tables[0].path}: column Labels holds one class only ({classes[0]}); two are needed")
    if strangers := sorted(set(tables[-1].labels) - set(classes)):
        raise InputError(
            f"{tables[-1].path}: column Labels: class(es) {shorten(strangers)} not in {tables[0].path} "
            f"({shorten(classes)}); use the same names in both"
        )
    return classes


def _folds(
    args: argparse.Namespace,
    tables: list[ImageTable],
    labels: np.ndarray,
    groups: np.ndarray | None,
    table_of_row: np.ndarray,
) -> np.ndarray:
    """Return the fold (N,) that tests each row; -1: only trained on."""
    if groups is None:
        lacking = shorten([t.path for t in tables if t.groups is None])
        warn(f"{lacking}: no column group: a donor's tiles may lie on both sides of a split, and intervals are by tile")
    if args.test_csv:
        if shared := _shared_groups(tables):
            warn(f"{shared} group(s) are in both tables: a donor's own tiles may be trained on and tested")
        return np.where(table_of_row == 1, 0, -1)
    try:
        return make_folds(labels, groups, args.folds, args.seed)
    except ValueError as error:
        raise InputError(f"{tables[0].path}: {error}; lower --folds ({args.folds}) or add rows") from None


def _shared_groups(tables: list[ImageTable]) -> int:
    if any(t.groups is None for t in tables):
        return 0
    return len(set(tables[0].groups) & set(tables[-1].groups))


def _describe(table: ImageTable) -> dict[str, object]:
    names, counts = np.unique(table.labels, return_counts=True)
    return {
        "path": str(table.path),
        "sha256": sha256_of(table.path),
        "n": len(table.names),
        "n_per_class": dict(zip(names.tolist(), counts.tolist(), strict=True)),
        "groups": None if table.groups is None else len(np.unique(table.groups)),
        "makers": named(table.makers),
    }


def _augmentation(frozen: bool, jitter: bool) -> str:
    if frozen:
        return "none (features are computed once)"
    return "flips and 90 degree turns" + (", mild colour jitter" if jitter else "")


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    return {k: v if np.isfinite(v) else None for k, v in values.items()}  # JSON has no NaN


def _predictions(
    tables: list[ImageTable],
    classes: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None,
    fold_of_row: np.ndarray,
    probabilities: np.ndarray,
) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["wsi_file_names", "Labels", "group", "fold", "predicted", *(f"p_{c}" for c in classes)])
    names = [n for t in tables for n in t.names]
    for row in np.flatnonzero(fold_of_row != -1):
        p = probabilities[row]
        group = "" if groups is None else groups[row]
        label, called = classes[labels[row]], classes[p.argmax()]
        writer.writerow([names[row], label, group, fold_of_row[row], called, *(f"{v:.6f}" for v in p)])
    return text.getvalue()


def _print(metrics: dict, out: Path, seconds: float) -> None:
    print(f"{metrics['backbone']}; tested {metrics['n_test_per_class']}, seed {metrics['seed']}")
    for name, score in metrics["scores"].items():
        value = "undefined" if score["value"] is None else f"{score['value']:.4f}"
        limits = score["interval"] and f" [{score['interval'][0]:.4f}, {score['interval'][1]:.4f}]"
        print(f"  {name:12s} {value}{limits or ''}")
    print(f"{metrics['interval_method']}; {seconds:.0f} s; wrote {out / 'metrics.json'}")


if __name__ == "__main__":
    sys.exit(run_command(main, build_parser()))
