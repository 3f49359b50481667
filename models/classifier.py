"""A classifier of tiles: a small network, a torchvision network, or a linear head on frozen weights from a file.

Defaults are the published ones (reference src/wsi_model.py: AdamW, rate 3e-3, weight decay 0.01, batch 16, 20 epochs,
flips). One thing differs: the published code freezes a randomly initialised ResNet-50 and trains its last layer alone,
so that the features are noise. Here a network without weights is trained as a whole; weights from a file are frozen.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common.archives import read_torch
from common.checkpoint import content_digest
from common.errors import InputError
from common.files import sha256_of
from common.run import generator_for, seed_for

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]; torchvision's weights
# torchvision networks that a weights file may belong to; the file's own names and shapes say which.
ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "densenet121", "efficientnet_b0")
BACKBONES = ("small", "resnet50")

Reader = Callable[[np.ndarray], np.ndarray]  # indices (n,) -> tiles uint8 (n, H, W, 3), or features float32 (n, d)


@dataclass
class FitSettings:
    """How a classifier is trained. Source of the defaults: reference src/wsi_model.py, patience ours."""

    num_epochs: int = 20
    batch_size: int = 16
    lr: float = 3e-3
    weight_decay: float = 0.01
    patience: int = 5  # epochs without a lower validation loss before stopping; 0: never stop early
    jitter: bool = False  # mild changes of brightness, contrast and saturation


class SmallCNN(nn.Module):
    """Three strided convolutions, an average over the image and one linear layer: 57,000 weights, for small tiles."""

    def __init__(self, n_classes: int, widths: tuple[int, ...] = (32, 64, 64)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths[:-1]), widths, strict=True):
            kernel = (4, 4, 0) if before == 3 else (3, 2, 1)  # side, stride, padding; patches of 4 px at first
            layers += [nn.Conv2d(before, after, *kernel, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # (n, 3, H, W) -> (n, 64, H/16, W/16)
        return self.head(x.mean(dim=(2, 3)))  # (n, classes)


class Classifier:
    """What is trained in each fold. `network()` gives a fresh one; `features` is the frozen part, or None.

    label: what it is, for a report. digest: SHA-256 of the weights file, or of the initial weights of fold 0.
    """

    def __init__(self, backbone: str, n_classes: int, seed: int, finetune: bool = False) -> None:
        """`backbone`: "small", "resnet50", or a file with the state dict of one of ARCHITECTURES.

        A file's network is frozen and a linear head is trained on its features; `finetune` trains all of it.
        InputError where the name is unknown, the file cannot be read, or it fits none of ARCHITECTURES.
        """
        self.n_classes, self.seed, self.features = n_classes, seed, None
        self._loaded: nn.Module | None = None
        self._pretrained: dict[str, Tensor] | None = None
        self._name = backbone
        if backbone not in BACKBONES:
            name, self._loaded, self._dim = _network_of_file(backbone)
            self.digest = sha256_of(backbone)
            if finetune:
                self.label = f"{name} from {Path(backbone).name}, all weights trained"
            else:
                self.label = f"{name} from {Path(backbone).name}, frozen, linear head trained on {self._dim} features"
                self.features = self._loaded
        else:
            size = "a small CNN" if backbone == "small" else f"torchvision's {backbone}"
            self.label = f"{size}, all weights trained from random initialisation"
            self.digest = content_digest(dict(self.network(0).state_dict()))

    def start_from(self, weights: dict[str, Tensor], words: str) -> None:
        """Let every network begin with `weights` (of models.contrastive: all but the last layer); `words` say whose."""
        self._pretrained, self.digest = weights, content_digest(weights)
        self.label = self.label.replace("from random initialisation", f"from {words}")

    def network(self, fold: int) -> nn.Module:
        """Return a network to be trained; its initial weights depend on (seed, fold), and on `start_from`, alone."""
        network = self._fresh(fold)
        if self._pretrained is not None:
            network.load_state_dict(self._pretrained, strict=False)  # the last layer stays as it was drawn
        return network

    def _fresh(self, fold: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(self.seed, "classifier", fold))
            if self.features is not None:
                return nn.Linear(self._dim, self.n_classes)
            if self._loaded is not None:
                return nn.Sequential(deepcopy(self._loaded), nn.Linear(self._dim, self.n_classes))
            if self._name == "small":
                return SmallCNN(self.n_classes)
            from torchvision import models as torchvision_models

            return torchvision_models.get_model(self._name, weights=None, num_classes=self.n_classes)


def normalised(batch: np.ndarray, device: torch.device) -> Tensor:
    """Return a network's input: tiles uint8 (n, H, W, 3) -> (n, 3, H, W), ImageNet z-scores; features unchanged."""
    x = torch.from_numpy(np.ascontiguousarray(batch)).to(device)
    if x.dtype != torch.uint8:
        return x
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (x.permute(0, 3, 1, 2).float() / 255 - mean) / std


def augmented(x: Tensor, generator: torch.Generator, jitter: bool) -> Tensor:
    """Return tiles (n, 3, S, S) flipped and turned by 90 degrees at random, colours jittered where asked.

    Jitter per tile: brightness 0.9 to 1.1, contrast 0.85 to 1.15, saturation 0.85 to 1.15 (the published contrast, 0.25
    to 1.75, turns a stained tile grey or black). Features (n, d) are returned as they are.
    """
    if x.ndim != 4:
        return x
    coin = torch.rand(3, len(x), 1, 1, 1, generator=generator).to(x.device) < 0.5
    x = torch.where(coin[0], x.flip(3), x)
    x = torch.where(coin[1], x.flip(2), x)
    x = torch.where(coin[2], x.transpose(2, 3), x)
    if jitter:
        b, c, s = (torch.rand(3, len(x), 1, 1, 1, generator=generator).to(x.device) * 2 - 1).unbind()  # [-1, 1]
        x = x * (1 + 0.1 * b)
        middle, grey = x.mean(dim=(1, 2, 3), keepdim=True), x.mean(dim=1, keepdim=True)
        x = (middle + (x - middle) * (1 + 0.15 * c)) * (1 + 0.15 * s) - grey * 0.15 * s
    return x


def fit(
    network: nn.Module,
    read: Reader,
    labels: np.ndarray,
    train: np.ndarray,
    val: np.ndarray,
    settings: FitSettings,
    seed: int,
    device: torch.device,
) -> list[dict[str, float]]:
    """Train `network` in place on rows `train`, keep the weights of the epoch with the lowest loss on rows `val`.

    labels: (N,) int class numbers. Returns one dict per epoch (train_loss, val_loss, val_accuracy). Depends on `seed`
    alone: order and augmentation of an epoch are drawn from (seed, epoch).
    """
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    best, kept, history = float("inf"), None, []
    for epoch in range(settings.num_epochs):
        # Update the weights.
        generator = generator_for(seed, "epoch", epoch)
        order = train[torch.randperm(len(train), generator=generator).numpy()]
        network.train()
        losses = []
        for rows in np.split(order, range(settings.batch_size, len(order), settings.batch_size)):
            if len(rows) == 1 and len(order) > 1:
                continue  # batch norm has no spread of one tile
            logits = network(augmented(normalised(read(rows), device), generator, settings.jitter))
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels[rows]).to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if not np.isfinite(losses).all():
            raise InputError(f"the classifier's loss is not finite in epoch {epoch + 1}; lower --lr ({settings.lr:g})")

        # Keep the best epoch on the validation rows; stop when it does not improve.
        chance = predict(network, read, val, device)
        val_loss = float(-np.log(np.clip(chance[np.arange(len(val)), labels[val]], 1e-12, 1)).mean())
        if not np.isfinite(val_loss):
            raise InputError(f"the classifier's loss is not finite in epoch {epoch + 1}; lower --lr ({settings.lr:g})")
        accuracy = float((chance.argmax(1) == labels[val]).mean())
        history.append({"train_loss": float(np.mean(losses)), "val_loss": val_loss, "val_accuracy": accuracy})
        if val_loss < best:
            best, kept, best_epoch = val_loss, deepcopy(network.state_dict()), epoch
        elif settings.patience and epoch - best_epoch >= settings.patience:
            break
    network.load_state_dict(kept)
    return history


@torch.no_grad()
def predict(
    network: nn.Module, read: Reader, rows: np.ndarray, device: torch.device, batch_size: int = 128
) -> np.ndarray:
    """Return class probabilities (len(rows), classes) float32; `network` is left in evaluation mode."""
    network.to(device).eval()
    batches = np.split(rows, range(batch_size, len(rows), batch_size))
    return np.concatenate([network(normalised(read(b), device)).softmax(1).cpu().numpy() for b in batches])


@torch.no_grad()
def frozen_features(
    backbone: nn.Module, read: Reader, n: int, device: torch.device, batch_size: int = 32
) -> np.ndarray:
    """Return the frozen network's features (n, d) float32 of tiles 0 to n - 1, each computed once."""
    backbone.to(device).eval()
    batches = np.split(np.arange(n), range(batch_size, n, batch_size))
    return np.concatenate([backbone(normalised(read(b), device)).cpu().numpy() for b in batches])


def _network_of_file(path: str) -> tuple[str, nn.Module, int]:
    """Return (architecture, network without its last layer, its feature dimension) of a state dict in a file."""
    from torchvision import models as torchvision_models

    if not Path(path).is_file():
        known = ", ".join(BACKBONES)
        raise InputError(f"--backbone {path}: no such file; expected {known} or a file with a torchvision state dict")
    try:
        saved = read_torch(path, other_forms=True)
    except InputError:
        raise
    except Exception as error:  # a damaged zip, a foreign pickle and a text file all fail in their own ways
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise InputError(
            f"--backbone {path}: not a readable PyTorch state dict ({reason}); download it again"
        ) from None
    saved = saved.get("state_dict", saved) if isinstance(saved, dict) else {}
    saved = {str(k).removeprefix("module."): v for k, v in saved.items() if isinstance(v, Tensor)}
    for name in ARCHITECTURES:
        with torch.device("meta"):
            network = torchvision_models.get_model(name, weights=None)
        head = [k for k, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
        shapes = {k: v.shape for k, v in network.state_dict().items() if not k.startswith(f"{head}.")}
        given = {k: v.shape for k, v in saved.items() if not k.startswith(f"{head}.")}
        if shapes == given:
            dim = network.get_submodule(head).in_features
            network.to_empty(device="cpu")
            network.set_submodule(head, nn.Identity())
            network.load_state_dict({k: saved[k] for k in shapes})
            return name, network.eval(), dim
    raise InputError(f"--backbone {path}: the names and shapes in it fit none of {', '.join(ARCHITECTURES)}")
