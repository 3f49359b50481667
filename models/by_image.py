"""Images divided among threads, for networks with compiled loops of their own and for whatever precedes a network."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from models.packed import PackedConvolution

IMAGES = 4  # at a time in a thread: their outputs take memory that is kept from layer to layer; ours, best of 2 to 16


class ByImage(nn.Module):
    """A network whose images are divided among torch's threads, each of which runs all of it on its own images.

    The compiled loops know nothing of torch's threads; and no thread waits for another at each layer. The threads, and
    the memory that each keeps from layer to layer, live for one call.
    """

    def __init__(self, network: nn.Module) -> None:
        """For inference."""
        super().__init__()
        self.network = network
        self.packed = any(isinstance(module, PackedConvolution) for module in network.modules())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the network's output for (N, ...), N divided."""
        threads = torch.get_num_threads()
        parts = x.chunk(max(min(threads, len(x)), -(-len(x) // IMAGES), 1))
        if threads == 1 or (len(parts) == 1 and not self.packed):  # weights packed for one thread suit no others
            return torch.cat([self.network(part) for part in parts])
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return torch.cat(list(pool.map(torch.inference_mode()(self.network), parts)))
        finally:
            torch.set_num_threads(threads)  # of threads yet to come; this one has kept its own number
