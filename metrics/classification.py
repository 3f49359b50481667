"""How a classifier is judged: folds by group, accuracy, weighted F1 and AUC, each with an interval over groups."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000  # of the bootstrap
LEVEL = 0.95


def make_folds(labels: np.ndarray, groups: np.ndarray | None, n_folds: int, seed: int) -> np.ndarray:
    """Return the fold (N,) in 0..n_folds-1 in which each row is tested; a group lies in one fold, classes are balanced.

    ValueError where there are fewer groups (or, without groups, fewer rows of a class) than folds, or where a fold
    would leave no row of some class to train on.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    names, counts = np.unique(labels, return_counts=True)
    if groups is not None:
        if (n := len(np.unique(groups))) < n_folds:
            raise ValueError(f"{n} groups for {n_folds} folds")
        splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    else:
        if counts.min() < n_folds:
            raise ValueError(f"{counts.min()} rows of class {names[counts.argmin()]} for {n_folds} folds")
        splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    fold = np.empty(len(labels), int)
    for number, (train, test) in enumerate(splitter.split(np.zeros(len(labels)), labels, groups)):
        if missing := sorted(set(names) - set(labels[train])):
            raise ValueError(f"all rows of class {missing[0]} fall into one of {n_folds} folds")
        fold[test] = number
    return fold


def inner_split(labels: np.ndarray, groups: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (train, validation) row numbers, a fifth for validation, by group where there are groups.

    Where there are too few groups for that, the split is by row: the validation part only chooses the epoch.
    """
    for by, n_folds in ((groups, 5), (groups, 3), (None, 5), (None, 2)):
        try:
            fold = make_folds(labels, by, n_folds, seed)
        except ValueError:
            continue
        if len(np.unique(labels[fold == 0])) == len(np.unique(labels)):
            return np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)
    rows = np.arange(len(labels))
    return rows, rows


def some_of(labels: np.ndarray, groups: np.ndarray | None, n: int, seed: int) -> np.ndarray:
    """Return at most n row numbers, sorted: seeded, the classes in turn and in each its groups in turn.

    `labels` (rows,) int, `groups` (rows,) or None: each row by itself.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.zeros(len(labels), int)  # which row of its class and group, then of its class
    for by in (groups, None):
        for name in np.unique(labels):
            mine = order[labels[order] == name]
            if by is None:
                mine = mine[np.argsort(turn[mine], kind="stable")]
                turn[mine] = np.arange(len(mine))
            else:
                for group in np.unique(by[mine]):
                    own = mine[by[mine] == group]
                    turn[own] = np.arange(len(own))
    return np.sort(order[np.argsort(turn[order], kind="stable")[:n]])


def scores(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """Return accuracy, f1_weighted and auc of labels (n,) int and probabilities (n, classes); nan where undefined.

    f1_weighted: F1 per class weighted by the class's true number. auc: for two classes the area under the ROC curve of
    class 1; for more the mean over classes of one against the rest. `weights` (n,) counts each row so many times.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    n_classes = probabilities.shape[1]
    predicted = probabilities.argmax(1)
    table = np.zeros((n_classes, n_classes))
    np.add.at(table, (labels, predicted), weights)
    true, called, hit = table.sum(1), table.sum(0), np.diag(table)
    f1 = np.divide(2 * hit, true + called, out=np.zeros(n_classes), where=true + called > 0)
    ones = [1] if n_classes == 2 else range(n_classes)
    areas = [_auc(labels == k, probabilities[:, k], weights) for k in ones]
    return {
        "accuracy": float(hit.sum() / table.sum()),
        "f1_weighted": float((f1 * true).sum() / true.sum()),
        "auc": float(np.mean(areas)),
    }


def intervals(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray | Sequence[object] | None, seed: int
) -> dict[str, list[float] | None]:
    """Return the 95 % interval [low, high] of each of `scores`, by a percentile bootstrap of 1,000 resamples of groups.

    Without groups rows are resampled. Where every row is right the bootstrap cannot vary; accuracy's lower end is then
    the exact binomial one, 0.025^(1/n) over n groups (Clopper and Pearson 1934). None where a score is undefined.
    """
    units = np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    n = units.max() + 1
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {}
    for _ in range(RESAMPLES):
        counts = np.bincount(generator.integers(0, n, n), minlength=n)
        for name, value in scores(labels, probabilities, counts[units].astype(float)).items():
            drawn.setdefault(name, []).append(value)
    tail = (1 - LEVEL) / 2
    found: dict[str, list[float] | None] = {}
    for name, values in drawn.items():
        finite = np.array(values)[np.isfinite(values)]
        found[name] = [float(q) for q in np.quantile(finite, [tail, 1 - tail])] if len(finite) else None
    if (probabilities.argmax(1) == labels).all():
        found["accuracy"] = [float(tail ** (1 / n)), 1.0]
    return found


def _auc(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> float:
    """Return the weighted area under the ROC curve: P(score of a positive > of a negative), ties counted half."""
    values, place = np.unique(score, return_inverse=True)
    up = np.bincount(place, weights * positive, len(values))
    down = np.bincount(place, weights * ~positive, len(values))
    if not up.sum() or not down.sum():
        return float("nan")
    below = np.cumsum(down) - down
    return float((up * (below + down / 2)).sum() / (up.sum() * down.sum()))
