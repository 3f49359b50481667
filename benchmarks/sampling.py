"""Drawing tiles from a DCGAN at the paper's size against torchgan's generator as the published code calls it.

    python benchmarks/sampling.py --n 5

The peer: torchgan 0.1.0's DCGANGenerator, never set to eval, without no_grad, in chunks of 10 (RNA-GAN
src/gan_utils.py:207-221). Ours: the same weights through generate_tiles, eval, batch norm folded, in bf16 where the
processor has it (--precision auto). Each side has its own process; turns alternate, the first of each is not counted.
Beside the times stands how far our tiles are from those of torchgan's network in eval mode on the same noise, in grey
levels of 255.
"""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.turns import cpu, has_bf16, serve, take_turns
from models.conditioning import ConditionedGenerator, InputRule
from models.dcgan import DCGANGenerator
from models.generate import CHUNK, generate_tiles

DIMS, CHANNELS, PEER_CHUNK = 2048, 64, 10


def serve_peer(peer: torch.nn.Module, tiles: int) -> None:
    """Draw as the published code does."""

    def draw() -> dict[str, Any]:
        for _ in range(tiles // PEER_CHUNK):
            peer(torch.randn(PEER_CHUNK, DIMS)).detach().cpu()
        return {}

    serve(draw)


def serve_ours(peer: torch.nn.Module, side: int, tiles: int, precision: str) -> None:
    """Draw as generate_tissue_images.py does, with the weights of `peer`; answer with the difference to it, too."""
    ours = ConditionedGenerator(DCGANGenerator(DIMS, side, CHANNELS), InputRule(), DIMS)
    ours.network.load_state_dict(peer.state_dict())
    ours.eval().network.fold()
    if precision == "bf16":
        ours.to_bf16()
    with torch.inference_mode():
        noise = torch.randn(4, DIMS)
        levels = (ours(noise).float() - peer.eval()(noise)).abs() * 127.5
    difference = {"levels_mean": f"{levels.mean():.2g}", "levels_max": f"{levels.max():.2g}"}
    del peer

    def draw() -> dict[str, Any]:
        for _ in generate_tiles(ours, tiles, seed=1):
            pass
        return difference

    serve(draw)


def main() -> None:
    """Alternate, compare, print the medians and a last line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5, help="turns of each side (default 5)")
    parser.add_argument("--tiles", type=int, default=80, help="tiles a turn (default 80)")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--only", choices=("peer", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tiles < 1 or args.tiles % math.lcm(PEER_CHUNK, CHUNK):
        parser.error(
            f"--tiles {args.tiles}: a multiple of {PEER_CHUNK} and {CHUNK}, so that neither side draws more than counts"
        )
    precision = args.precision if args.precision != "auto" else "bf16" if has_bf16() else "fp32"
    if args.only:
        from torchgan.models import DCGANGenerator as Peer

        torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        peer = Peer(DIMS, args.side, step_channels=CHANNELS)
        if args.only == "peer":
            serve_peer(peer, args.tiles)
        else:
            serve_ours(peer, args.side, args.tiles, precision)
        return

    answers = take_turns(["peer", "ours"], args.n)
    medians = {name: statistics.median(turn["seconds"] for turn in turns[1:]) for name, turns in answers.items()}
    last = answers["ours"][-1]
    result = {
        "benchmark": "sampling",
        "peer": "torchgan 0.1.0's DCGANGenerator, train mode, chunks of 10",
        "ratio": round(medians["peer"] / medians["ours"], 3),
        "tiles_per_second": round(args.tiles / medians["ours"], 2),
        "precision": precision,
        "grey_levels_from_eval_mean": float(last["levels_mean"]),
        "grey_levels_from_eval_max": float(last["levels_max"]),
        "peak_rss_gb": last["peak_rss_gb"],
        "peak_rss_gb_peer": answers["peer"][-1]["peak_rss_gb"],
        "n": args.n,
        "tiles": args.tiles,
        "side": args.side,
        "threads": args.threads,
        **cpu(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
