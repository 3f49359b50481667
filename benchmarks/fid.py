"""FID of two folders of PNGs, end to end: fid.py in fp32 and bf16 against pytorch-fid and torch-fidelity, same weights.

    python benchmarks/fid.py                          # 600 tiles a side, some 15 minutes on 2 cores
    python benchmarks/fid.py --n 60 --reference_n 0   # a quick look

End to end is a fresh process from its start to the printed value: imports, weights, decoding, features, distance. The
tools take turns; all have the same number of threads, and fid.py a cold cache (warm: the same call again). "features"
is what the peer spends on activations alone: pytorch-fid's distance is a square root of a singular 2048 x 2048 matrix,
torch-fidelity's the eigenvalues of one. torch-fidelity resizes as TensorFlow did, so that its value is its own.
The reference's procedure is, in one process, pytorch-fid's network at batch size 2, loaded anew for each of 5 draws of
--reference_n tiles, each with its distance. Its draws are other tiles each time: here disjoint parts of folders of
5 x --reference_n pictures. fid.py makes 5 draws of --reference_n from the whole folders in one call; its draws overlap
at random, and it extracts a tile that is drawn twice once: of 5 draws about 3.4 parts of 5 are extracted. That is its
advantage by design, and part of the ratio; so the values are of other tiles and not to be compared. Each side's time
holds its own start. --reference_draws: fewer draws on both sides, from folders as much smaller, for a quick trial.
Ratios of processor seconds are less moved by other work beside the run than those of seconds.

--weights: the published file pt_inception-2015-12-05-6726825d.pth. Without it random weights of that layout are made
(seeded, He; batch norm's statistics are those of real tiles, its shift 1, so that most ReLUs are open: with a shift of
0 a random network is chaotic, and rounding grows from layer to layer). They serve speed and fp32 values. What bf16 does
to a value under trained weights they cannot say: that is also measured with EfficientNet-lite0's.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.turns import cpu
from models.features import FID_WEIGHTS, load_extractor
from models.inception import FIDInception
from sources.real import FolderSource

ROOT = Path(__file__).resolve().parent.parent
LUNG, OTHER = "lung_n", "lung_aca"  # folders of --data
FEATURES, PEAK = "seconds of features:", "peak MB:"

# Each peer as it is called by its users, with a clock around its features. A and B are the folders, W the weights;
# PAIRS the folders of each draw.
PYTORCH_FID = """
import sys, time
from pytorch_fid import fid_score
from scipy import linalg
try:
    linalg.sqrtm([[1.0]], disp=False)
except TypeError:  # scipy 1.18 dropped the argument
    print("pytorch-fid: scipy's sqrtm takes no disp any more, called without it")
    plain = linalg.sqrtm
    linalg.sqrtm = lambda a, disp=True: plain(a) if disp else (plain(a), 0.0)
measured, spent = fid_score.calculate_activation_statistics, []
def timed(*args, **kwargs):
    start = time.perf_counter()
    result = measured(*args, **kwargs)
    spent.append(time.perf_counter() - start)
    return result
fid_score.calculate_activation_statistics = timed
sys.argv = ["pytorch-fid", "--device", "cpu", A, B]
if PAIRS:
    for pair in PAIRS:
        print("FID: ", fid_score.calculate_fid_given_paths(pair, 2, "cpu", 2048, 0))
else:
    fid_score.main()
"""
TORCH_FIDELITY = """
import time, torch_fidelity
from torch_fidelity import metric_fid
measured, spent = metric_fid.extract_featuresdict_from_input_id_cached, []
def timed(*args, **kwargs):
    start = time.perf_counter()
    result = measured(*args, **kwargs)
    spent.append(time.perf_counter() - start)
    return result
metric_fid.extract_featuresdict_from_input_id_cached = timed
options = dict(cuda=False, fid=True, cache=False, verbose=False, feature_extractor_weights_path=W)
print("FID: ", torch_fidelity.calculate_metrics(input1=A, input2=B, **options)["frechet_inception_distance"])
"""
OURS = """
import time, fid
from common.errors import run_command
measured, spent = fid.Draws.extract, []
def timed(*args, **kwargs):
    start = time.perf_counter()
    measured(*args, **kwargs)
    spent.append(time.perf_counter() - start)
fid.Draws.extract = timed
line = ["--checkpoint", A, "--checkpoint2", B, "--extractor", "inception", "--weights", W, "--device", "cpu"]
line += ["--out", OUT, "--sample_size", N, "--iterations", draws, "--precision", precision]
assert run_command(fid.main, fid.build_parser(), [*map(str, line), "--feature_cache", cache]) == 0
import json
print("FID: ", json.load(open(OUT + "/metrics.json"))["fid"]["mean"])
"""


def write_sides(data: Path, n: int, folder: Path) -> tuple[str, str]:
    """Write n tiles a side as PNG; side A from LUNG, side B from what is left of it and OTHER, mirrored when short."""
    lung, other = (sorted((data / name).glob("*.*g")) for name in (LUNG, OTHER))
    if not lung or not other:
        sys.exit(f"{data}: no pictures in {LUNG} and {OTHER}; name the folder of real tiles with --data")
    first = lung[:n]
    second = (other + lung[n:])[:n]
    for name, files in (("A", first), ("B", second)):
        (folder / name).mkdir()
        for i in range(n):
            image = Image.open(files[i % len(files)]).convert("RGB")
            turns = i // len(files)  # once all are used: mirrored, turned
            image = Image.fromarray(np.rot90(np.asarray(image)[:, :: -1 if turns % 2 else 1], turns // 2).copy())
            image.save(folder / name / f"{i:05d}.png")
    return str(folder / "A"), str(folder / "B")


def parts_of(folder: str, n: int) -> list[str]:
    """Return new folders of n pictures each, links to those of `folder`, which has a multiple of n."""
    parts = []
    for i, picture in enumerate(sorted(Path(folder).iterdir())):
        part = Path(f"{folder}_{i // n}")
        part.mkdir(exist_ok=True)
        (part / picture.name).hardlink_to(picture)
        parts += [str(part)] * (i % n == 0)
    return parts


def make_weights(path: Path, images: np.ndarray) -> None:
    """Write random weights in the layout of the published file; images (n, H, W, 3) uint8 calibrate batch norm."""
    source, network = torch.Generator().manual_seed(0), FIDInception().requires_grad_(False)
    for name, value in network.named_parameters():
        noise = torch.randn(value.shape, generator=source)
        if value.ndim > 1:
            value.copy_(noise * (2 / value[0].numel()) ** 0.5)
        elif not name.startswith("fc."):
            value.copy_(1 + 0.1 * noise)  # batch norm's scale and shift
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean over what it sees
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    x = torch.nn.functional.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
    with torch.no_grad():
        network.train()(x.contiguous(memory_format=torch.channels_last))
    torch.save({k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}, path)


def run(script: str, names: dict[str, Any], threads: int, home: Path) -> dict[str, float]:
    """Run a script with these names in a fresh process; return its value, seconds and peak GB.

    Seconds: wall, of all processors together, and wall of the features alone.

    The peak is the process's own (VmHWM), told by itself at its end.
    """
    head = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    tail = f"from benchmarks.turns import peak_mb\nprint({FEATURES!r}, sum(spent))\nprint({PEAK!r}, peak_mb())"
    code = f"{head}{script}\n{tail}"
    settings = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TORCH_HOME": str(home)}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        start, before = time.perf_counter(), _processor_seconds()
        status = subprocess.call(
            [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env=os.environ | settings, stdout=out, stderr=errors
        )
        seconds, processor = time.perf_counter() - start, _processor_seconds() - before
        out.seek(0)
        errors.seek(0)
        text = out.read()
        values = re.findall(r"^FID: +(\S+)", text, re.M)
        if status or not values:
            sys.exit(f"{text}{errors.read()}\nthis side failed, status {status}")
    if "called without it" in text:
        print(text.splitlines()[0])
    spent, peak = (float(re.search(rf"^{words} (\S+)", text, re.M).group(1)) for words in (FEATURES, PEAK))
    return {
        "value": float(values[-1]),
        "s": seconds,
        "processor_s": processor,
        "features_s": spent,
        "peak_gb": peak / 1024,
    }


def _processor_seconds() -> float:
    """Return what all processes that ended below this one have used."""
    spent = os.times()
    return spent.children_user + spent.children_system


def lite0_difference(a: str, b: str, threads: int) -> float:
    """Return how far bf16 moves the Fréchet distance under EfficientNet-lite0's trained weights, relative to fp32."""
    from metrics.frechet import frechet_distance

    torch.set_num_threads(threads)
    values = []
    for precision in ("fp32", "bf16"):
        extractor = load_extractor(precision=precision)
        batches = (FolderSource(side).batches(10**6, 0, 16) for side in (a, b))
        values.append(frechet_distance(*(np.concatenate([extractor(x) for x in side]) for side in batches)))
    return values[1] / values[0] - 1


def main() -> None:
    """Run the sides in turns, compare values and times, print a last line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "tiles", help="real tiles")
    parser.add_argument("--weights", type=Path, help="the published weights; default: random ones")
    parser.add_argument("--n", type=int, default=600, help="tiles a side (default 600)")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each tool (default 1)")
    parser.add_argument("--threads", type=int, default=2, help="of each tool (default 2)")
    parser.add_argument("--reference_n", type=int, default=100, help="tiles a side and draw there; 0: leave it out")
    parser.add_argument("--reference_draws", type=int, default=5, help="of both sides there (default 5)")
    args = parser.parse_args()
    if args.reference_draws < 1 or args.reference_n == 1:
        parser.error("--reference_draws: at least 1; --reference_n: at least 2, or 0")
    torch.set_num_threads(args.threads)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        a, b = write_sides(args.data, args.n, folder)
        home = folder / "torch"
        (home / "hub" / "checkpoints").mkdir(parents=True)
        weights = home / "hub" / "checkpoints" / FID_WEIGHTS  # where pytorch-fid looks
        if args.weights:
            weights.symlink_to(args.weights.resolve())
        else:
            both = [FolderSource(side).read(np.arange(min(12, args.n))) for side in (a, b)]
            make_weights(weights, np.concatenate(both))
            print("RANDOM WEIGHTS: the values below are no FID, only equal or not")
        common = {"A": a, "B": b, "W": str(weights), "PAIRS": []}
        ours = {**common, "N": args.n, "draws": 1, "OUT": str(folder / "out")}

        def in_turns(sides: dict[str, tuple[str, dict[str, Any]]], rounds: int) -> dict[str, list[dict[str, float]]]:
            found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
            for k in range(rounds):
                for name, (script, names) in sides.items():
                    own = {"cache": str(folder / f"cache_{name.removesuffix('_warm')}_{k}")} if script == OURS else {}
                    m = run(script, names | own, args.threads, home)
                    found[name].append(m)
                    words = f"{m['s']:8.1f} s, processors {m['processor_s']:8.1f} s, features {m['features_s']:8.1f} s"
                    print(f"{name:15} {words}, peak {m['peak_gb']:5.2f} GB, value {m['value']:.7g}", flush=True)
            return found

        sides = {
            "fp32": (OURS, {**ours, "precision": "fp32"}),
            "pytorch_fid": (PYTORCH_FID, common),
            "bf16": (OURS, {**ours, "precision": "bf16"}),
            "torch_fidelity": (TORCH_FIDELITY, common),
            "fp32_warm": (OURS, {**ours, "precision": "fp32"}),
        }
        measured = in_turns(sides, args.rounds)
        reference: dict[str, Any] = {}
        if args.reference_n:
            draws, n = args.reference_draws, args.reference_n
            (folder / "draws").mkdir()
            a5, b5 = write_sides(args.data, draws * n, folder / "draws")
            whole = {**common, "A": a5, "B": b5}
            pairs = [list(pair) for pair in zip(parts_of(a5, n), parts_of(b5, n), strict=True)]
            three = {"reference": (PYTORCH_FID, whole | {"PAIRS": pairs})}
            for p in ("fp32", "bf16"):
                three[f"draws_{p}"] = (OURS, {**ours, **whole, "N": n, "draws": draws, "precision": p})
            rows = {name: found[0] for name, found in in_turns(three, 1).items()}
            reference = {
                "reference_n": n,
                "reference_draws": draws,
                "ratio_reference": round(rows["reference"]["s"] / rows["draws_fp32"]["s"], 2),
                "ratio_reference_bf16": round(rows["reference"]["s"] / rows["draws_bf16"]["s"], 2),
            }
            for p in ("fp32", "bf16"):
                for what in ("features", "processor"):
                    ratio = rows["reference"][f"{what}_s"] / rows[f"draws_{p}"][f"{what}_s"]
                    reference[f"ratio_reference_{what}" + "_bf16" * (p == "bf16")] = round(ratio, 2)
        drift = lite0_difference(a, b, args.threads)

    def median(name: str, what: str) -> float:
        return statistics.median(m[what] for m in measured[name])

    value = median("fp32", "value")
    result = {
        "benchmark": f"fid {args.n} a side",
        "peer": "pytorch-fid 0.3.0",
        "ratio": round(median("pytorch_fid", "s") / median("fp32", "s"), 2),
        "ratio_bf16": round(median("pytorch_fid", "s") / median("bf16", "s"), 2),
        "ratio_features": round(median("pytorch_fid", "features_s") / median("fp32", "features_s"), 2),
        "ratio_features_bf16": round(median("pytorch_fid", "features_s") / median("bf16", "features_s"), 2),
        "ratio_processor": round(median("pytorch_fid", "processor_s") / median("fp32", "processor_s"), 2),
        "ratio_processor_bf16": round(median("pytorch_fid", "processor_s") / median("bf16", "processor_s"), 2),
        "ratio_torch_fidelity": round(median("torch_fidelity", "s") / median("fp32", "s"), 2),
        "ratio_torch_fidelity_bf16": round(median("torch_fidelity", "s") / median("bf16", "s"), 2),
        "ratio_warm": round(median("pytorch_fid", "s") / median("fp32_warm", "s"), 1),
        **reference,
        "n": args.rounds,
        "peak_rss_gb": {name: round(median(name, "peak_gb"), 2) for name in measured},
        "seconds": {name: round(median(name, "s"), 2) for name in measured},
        "processor_seconds": {name: round(median(name, "processor_s"), 2) for name in measured},
        "values": {name: float(f"{median(name, 'value'):.8g}") for name in measured},
        "relative_difference": {
            name: float(f"{median(name, 'value') / value - 1:.2g}") for name in measured if name != "fp32"
        },
        "relative_difference_bf16_lite0": float(f"{drift:.2g}"),
        "weights": "published" if args.weights else "random",
        "threads": args.threads,
        **cpu(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
