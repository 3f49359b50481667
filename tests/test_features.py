"""Extractors: the FID network is pytorch-fid's, preprocessing is what is stated, foreign weights are refused."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from common.errors import InputError
from common.files import sha256_of
from metrics.frechet import frechet_distance
from models.features import FID_WEIGHTS, check_images, load_extractor, read_state_dict
from models.inception import FIDInception


def tiles(n, side=64, seed=0):
    """Noise with structure: n tiles (side, side) of differing colour and grain."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, side // 8, side // 8, 3)).repeat(8, 1).repeat(8, 2)
    return np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def fid_weights(tmp_path_factory):
    """A file in the form of the published FID weights, with random content (He initialisation keeps signals alive)."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in FIDInception().state_dict().items()}
    generator, state = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            state[name] = noise * (2 / shape[1:].numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = 1 + 0.1 * noise.abs()
        else:
            state[name] = 0.1 * noise
    path = tmp_path_factory.mktemp("weights") / "fid.pth"
    torch.save({k: v for k, v in state.items() if "num_batches_tracked" not in k}, path)  # as in the published file
    return path


@pytest.fixture(scope="session")
def inception(fid_weights):
    return load_extractor("inception", fid_weights)


def joint_basis(x, y):
    """Orthonormal columns that span both sets: projecting on them changes no distance, and makes sqrtm affordable."""
    return np.linalg.svd(np.concatenate([x, y]).astype(np.float64), full_matrices=False)[2].T


def test_inception_and_distance_equal_pytorch_fid(fid_weights, inception, tmp_path, monkeypatch):
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    theirs_module = pytest.importorskip("pytorch_fid.inception")
    monkeypatch.setattr(theirs_module, "load_state_dict_from_url", lambda *_, **__: torch.load(fid_weights))
    network = theirs_module.InceptionV3([3]).eval()
    theirs, ours = [], []
    for side, images in enumerate((tiles(6, seed=1), tiles(5, seed=2))):
        files = []
        for i, image in enumerate(images):
            files.append(tmp_path / f"{side}_{i}.png")
            Image.fromarray(image).save(files[-1])
        theirs.append(fid_score.get_activations(files, network, batch_size=3, num_workers=0))
        ours.append(inception(images))
        assert ours[-1].shape == (len(images), 2048) and inception.dim == 2048
        np.testing.assert_allclose(ours[-1], theirs[-1], rtol=1e-3, atol=1e-4 * np.abs(theirs[-1]).max())
    basis = joint_basis(*theirs)
    statistics = [(f(x @ basis)) for x in theirs for f in (lambda v: v.mean(0), lambda v: np.cov(v, rowvar=False))]
    expected = fid_score.calculate_frechet_distance(*statistics)
    assert frechet_distance(*ours) == pytest.approx(expected, rel=1e-3)


def test_an_extractor_says_what_it_is(inception, fid_weights):
    described = inception.describe()
    assert described["name"] == "inception" and described["weights_digest"] == sha256_of(fid_weights)
    assert "299" in described["preprocessing"] and described["dim"] == 2048


def test_unpublished_fid_weights_are_noted(fid_weights, capsys):
    load_extractor("inception", fid_weights)
    assert "not the published FID weights" in capsys.readouterr().err


def test_inception_takes_torchs_cache_and_never_downloads(fid_weights, inception, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match="--weights"):
        load_extractor("inception")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / FID_WEIGHTS).symlink_to(fid_weights)
    assert load_extractor("inception").digest == inception.digest


def test_lite0_is_the_default_with_its_own_weights():
    extractor = load_extractor()
    assert (extractor.name, extractor.input_side, extractor.dim) == ("efficientnet_lite0", 224, 1280)
    assert extractor.digest.startswith("57934424")  # the package's file names itself so
    images = tiles(3)
    features = extractor(images)
    assert features.shape == (3, 1280) and features.dtype == np.float32 and np.isfinite(features).all()
    np.testing.assert_allclose(extractor(images[1:2]), features[1:2], rtol=1e-3, atol=1e-4)  # no batch statistics


def test_lite0_preprocessing_is_tensorflows():
    extractor = load_extractor(side=32)
    seen = []
    hook = extractor.network[1].register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    extractor(np.full((1, 32, 32, 3), 255, np.uint8))
    extractor(np.full((1, 32, 32, 3), 127, np.uint8))
    hook.remove()
    assert float(seen[0].max()) == pytest.approx(1.0) and float(seen[1].abs().max()) == pytest.approx(0, abs=1e-6)


def test_another_side_is_in_the_name_and_changes_the_features():
    small = load_extractor(side=64)
    assert small.name == "efficientnet_lite0@64px" and small.input_side == 64
    assert load_extractor(side=224).name == "efficientnet_lite0"
    assert not np.allclose(small(tiles(2)), load_extractor()(tiles(2)), rtol=0.1)


def test_precision_is_in_the_name():
    fast = load_extractor(side=64, precision="bf16")
    assert fast.name == "efficientnet_lite0@64px, bf16" and fast.describe()["precision"] == "bf16"
    assert load_extractor(side=64).describe()["precision"] == "fp32" and fast(tiles(2)).dtype == np.float32
    with pytest.raises(InputError, match="fp32 or bf16"):
        load_extractor(precision="fp16")


def test_bf16_keeps_the_distance_of_real_tiles(data_folder):
    files = {t: sorted((data_folder / "tiles" / t).glob("*.*g"))[:160:2] for t in ("lung_n", "brain_glioma")}
    if not all(files.values()):
        pytest.skip("no tiles of lung_n and brain_glioma in the real data")
    sides = [
        np.stack([np.asarray(Image.open(f).convert("RGB").resize((96, 96))) for f in chosen])
        for chosen in files.values()
    ]
    exact, fast = (
        frechet_distance(*map(load_extractor(side=96, precision=precision), sides)) for precision in ("fp32", "bf16")
    )
    assert fast == pytest.approx(exact, rel=5e-3)


def test_lite0_tells_real_tissues_apart(data_folder):
    files = {t: sorted((data_folder / "tiles" / t).glob("*.*g"))[:240:10] for t in ("lung_n", "brain_glioma")}
    if not all(files.values()):
        pytest.skip("no tiles of lung_n and brain_glioma in the real data")
    extractor = load_extractor(side=96)
    lung, brain = (
        extractor(np.stack([np.asarray(Image.open(f).convert("RGB").resize((96, 96))) for f in chosen]))
        for chosen in files.values()
    )
    within = frechet_distance(lung[::2], lung[1::2])
    assert frechet_distance(lung, brain) > 1.5 * within


@pytest.mark.parametrize(("name", "dim"), [("resnet18", 512), ("mobilenet_v3_small", 1024)])
def test_torchvision_backbones_come_from_a_file(name, dim, tmp_path):
    network = torchvision.models.get_model(name, weights=None, num_classes=7)  # fine-tuned: another classifier
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "w.pt")
    extractor = load_extractor(name, tmp_path / "w.pt", side=64)
    assert extractor.name == f"{name}@64px" and extractor(tiles(2)).shape == (2, dim)


def test_weights_without_a_classifier_are_enough(tmp_path):
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save({k: v for k, v in state.items() if not k.startswith("fc.")}, tmp_path / "w.pt")
    assert load_extractor("resnet18", tmp_path / "w.pt", side=32).dim == 512


def test_wrong_names_and_files_are_refused(tmp_path):
    def refused(match, *args, **kwargs):
        with pytest.raises(InputError, match=match):
            load_extractor(*args, **kwargs)

    refused("nearest: resnet50", "resnet5")
    refused("known are efficientnet_lite0, inception and, with --weights, torchvision's alexnet, .*, resnet50,", "x")
    refused("--weights", "resnet18")
    refused("no such weights file", "resnet18", tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    refused("text.pt: .*damaged, or not of torch.save; nothing of it was executed", "resnet18", tmp_path / "text.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    refused("not a state dict", "resnet18", tmp_path / "list.pt")
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "r18.pt")
    refused("not torchvision's resnet34", "resnet34", tmp_path / "r18.pt")
    refused("not the FID Inception", "inception", tmp_path / "r18.pt")
    refused("brings its own weights", "efficientnet_lite0", tmp_path / "r18.pt")
    state = torchvision.models.resnet18(weights=None).state_dict()
    state["conv1.weight"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    refused("NaN", "resnet18", tmp_path / "nan.pt")


@pytest.mark.parametrize("side", [2, 8, 16, 18, 32])
def test_a_side_the_network_cannot_take_is_refused(fid_weights, side):
    with pytest.raises(InputError, match=f"does not run at {side} px"):
        load_extractor("inception", fid_weights, side=side)


def test_no_images_have_no_features(inception):
    assert inception(tiles(1)).shape == (1, 2048) and inception(np.zeros((0, 299, 299, 3), np.uint8)).shape == (0, 2048)


class Payload:
    def __reduce__(self):
        return (open, ("executed", "w"))


def test_pickled_code_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Payload()}, "w.pt")
    with pytest.raises(InputError, match=r"w\.pt: asks for _?io\.open, tensors and plain data were expected"):
        read_state_dict("w.pt")
    assert not (tmp_path / "executed").exists()


def test_images_of_another_kind_are_refused():
    with pytest.raises(InputError, match=r"here: expected 8-bit RGB .*float32 holding NaN"):
        check_images(np.full((1, 8, 8, 3), np.nan, np.float32), "here")
    with pytest.raises(InputError, match="shape"):
        check_images(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="list"):
        check_images([1, 2])
