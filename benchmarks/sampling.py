"""Drawing tiles from a DCGAN at the paper's size against torchgan's generator as the published code calls it.

    python benchmarks/sampling.py --n 5

The peer: torchgan 0.1.0's DCGANGenerator, never set to eval, without no_grad, in chunks of 10 (RNA-GAN
src/gan_utils.py:207-221). Ours: the same weights through generate_tiles, eval, batch norm folded. Turns alternate.
Beside the times stands how far our tiles are from those of torchgan's network in eval mode on the same noise.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.conditioning import ConditionedGenerator, InputRule
from models.dcgan import DCGANGenerator
from models.generate import generate_tiles

DIMS, CHANNELS, CHUNK = 2048, 64, 10


def main() -> None:
    """Alternate, compare, print the medians and a last line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5, help="turns of each side (default 5)")
    parser.add_argument("--tiles", type=int, default=80, help="tiles a turn (default 80)")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from torchgan.models import DCGANGenerator as Peer

    torch.manual_seed(0)
    peer = Peer(DIMS, args.side, step_channels=CHANNELS)
    ours = ConditionedGenerator(DCGANGenerator(DIMS, args.side, CHANNELS), InputRule(), DIMS)
    ours.network.load_state_dict(peer.state_dict())
    ours.eval().network.fold()
    with torch.inference_mode():
        noise = torch.randn(4, DIMS)
        difference = (ours(noise) - peer.eval()(noise)).abs().max().item()
    peer.train()

    def draw_peer() -> None:
        for _ in range(args.tiles // CHUNK):
            peer(torch.randn(CHUNK, DIMS)).detach().cpu()

    def draw_ours() -> None:
        for _ in generate_tiles(ours, args.tiles, seed=1):
            pass

    seconds: dict[str, list[float]] = {"peer": [], "ours": []}
    for turn in range(args.n + 1):  # the first is not timed
        for name, draw in (("peer", draw_peer), ("ours", draw_ours)):
            start = time.perf_counter()
            draw()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print("seconds: " + "; ".join(f"{k} {' '.join(f'{v:.2f}' for v in values)}" for k, values in seconds.items()))
    result = {
        "benchmark": "sampling",
        "peer": "torchgan 0.1.0's DCGANGenerator, train mode, chunks of 10",
        "ratio": round(medians["peer"] / medians["ours"], 3),
        "tiles_per_second": round(args.tiles / medians["ours"], 2),
        "difference_in_eval": float(f"{difference:.2g}"),
        "n": args.n,
        "tiles": args.tiles,
        "side": args.side,
        "threads": args.threads,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
