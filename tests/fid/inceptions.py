"""Random weight files of the 2015 Inception's shape, and what other people's evaluators make of them.

    python -m tests.fid.inceptions features PICTURES.npz OUT.npz WEIGHTS ...
    python -m tests.fid.inceptions distance MODE FOLDER FOLDER WEIGHTS

In a process of its own, because torch is ten times slower in one that also runs XLA. PICTURES holds arrays uint8
[height, width, 3]; OUT gets float32 [pictures, 2048] for each weight file and mode.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from tests.fid import peers

MODES = ("clean", "legacy_tensorflow", "legacy_pytorch")


def write_weights(path: Path, seed: int, gain: float = 1.0) -> dict[str, torch.Tensor]:
    """Writes and returns a random state dict with no counters in it, as the published one.

    `gain`: factor of the variance after each convolution; there are up to some thirty in a row.
    """
    generator = torch.Generator().manual_seed(seed)

    def value(name: str, shape: torch.Size) -> torch.Tensor:
        match name.rpartition(".")[2]:
            case "weight" if len(shape) == 4:
                return torch.randn(shape, generator=generator) * (2 * gain / shape[1:].numel()) ** 0.5
            case "weight" | "running_var":
                return torch.rand(shape, generator=generator) + 0.5
            case _:
                return torch.randn(shape, generator=generator) * 0.1

    shapes = {name: tensor.shape for name, tensor in _torchvision_network().state_dict().items()}
    state = {name: value(name, shape) for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}
    torch.save(state, path)
    return state


def _torchvision_network() -> torch.nn.Module:
    peers.make_importable()
    from torchvision.models import inception_v3

    with torch.device("meta"):
        return inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)


def pytorch_fid_network(weights: Path) -> torch.nn.Module:
    """pytorch-fid's own network, which takes its weights from this file instead of the network."""
    peers.make_importable()
    from pytorch_fid import inception

    inception.load_state_dict_from_url = lambda *_, **__: torch.load(weights)
    return inception.InceptionV3().eval()


def torch_fidelity_network(weights: Path) -> torch.nn.Module:
    peers.make_importable()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3("test", ["2048"], feature_extractor_weights_path=str(weights))


def clean_fid_network(weights: Path) -> torch.nn.Module:
    """[batch, 3, 299, 299] of 0..255 to features: for clean-fid's pipeline, whose own file of weights is a program.

    The graph is pytorch-fid's, the normalisation the one inside that program.
    """
    network = pytorch_fid_network(weights)
    network.resize_input = network.normalize_input = False

    class Normalised(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return network((images - 128) / 128)[0].flatten(1)

    return Normalised()


@torch.no_grad()
def _features(weights: Path, pictures: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The 2,048 features by mode."""
    fidelity, pytorch_fid, clean = (
        make(weights) for make in (torch_fidelity_network, pytorch_fid_network, clean_fid_network)
    )
    resize = peers.clean_resizer()

    def batch(picture: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))[None])

    by_mode = {
        "clean": lambda picture: clean(batch(resize(picture))),
        "legacy_tensorflow": lambda picture: fidelity(batch(picture))[0],
        "legacy_pytorch": lambda picture: pytorch_fid(batch(picture).float().div(255))[0],
    }
    return {
        mode: np.stack([function(picture).numpy().reshape(-1) for picture in pictures])
        for mode, function in by_mode.items()
    }


def _distance(weights: Path, mode: str, folders: Sequence[str]) -> float:
    """The distance of two folders by the whole program of the mode's reference."""
    if mode == "legacy_pytorch":
        fid = peers.pytorch_fid()
        pytorch_fid_network(weights)
        return fid.calculate_fid_given_paths(list(folders), 16, torch.device("cpu"), 2048, num_workers=0)
    if mode == "legacy_tensorflow":
        peers.make_importable()
        import torch_fidelity

        metrics = torch_fidelity.calculate_metrics(
            input1=folders[0],
            input2=folders[1],
            fid=True,
            cuda=False,
            batch_size=16,
            cache=False,
            feature_extractor_weights_path=str(weights),
        )
        return metrics["frechet_inception_distance"]
    network = clean_fid_network(weights)
    cpu = torch.device("cpu")
    return peers.clean_fid().compare_folders(
        *folders, network, "clean", num_workers=0, batch_size=16, device=cpu, verbose=False
    )


def references(
    weights: Sequence[Path], pictures: Sequence[np.ndarray], scratch: Path
) -> dict[tuple[Path, str], np.ndarray]:
    """Of each weight file and mode, features float32 [pictures, 2048] of uint8 [height, width, 3], without us.

    Resize, normalisation and network are pytorch-fid's and torch-fidelity's; for "clean" the resize is clean-fid's.
    """
    np.savez(scratch / "pictures.npz", *pictures)
    _run("features", scratch / "pictures.npz", scratch / "features.npz", *weights)
    with np.load(scratch / "features.npz") as file:
        return {(path, mode): file[f"{number} {mode}"] for number, path in enumerate(weights) for mode in MODES}


def reference_distance(weights: Path, mode: str, real: Path, fake: Path) -> float:
    """The number that the reference of a mode prints for two folders."""
    return float(_run("distance", mode, real, fake, weights).split()[-1])


def _run(*arguments: object) -> str:
    command = [sys.executable, "-m", "tests.fid.inceptions", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def edited(path: Path, target: Path, change: Callable[[dict], object]) -> Path:
    """A copy of a file of weights after `change` of its state dict."""
    state = torch.load(path)
    change(state)
    torch.save(state, target)
    return target


if __name__ == "__main__":
    torch.set_num_threads(2)
    action, *rest = sys.argv[1:]
    if action == "features":
        pictures, out, *paths = rest
        with np.load(pictures) as file:
            arrays = list(file.values())
        found = enumerate(_features(Path(path), arrays) for path in paths)
        np.savez(out, **{f"{number} {mode}": x for number, by_mode in found for mode, x in by_mode.items()})
    else:
        mode, real, fake, weights = rest
        print(repr(float(_distance(Path(weights), mode, (real, fake)))))
