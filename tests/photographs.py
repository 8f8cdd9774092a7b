"""Real photographs for tests: windows, each of them distinct, of the pictures that installable packages ship."""

import functools
import importlib.util
import itertools
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

_IN_WHEELS = {
    "skimage": (
        "data",
        (
            "astronaut.png",
            "chelsea.png",
            "coffee.png",
            "hubble_deep_field.jpg",
            "motorcycle_left.png",
            "retina.jpg",
            "rocket.jpg",
        ),
    ),
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
}
_DEBIAN_PACKAGES = ("mate-backgrounds", "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04")


def photographs(count: int, height: int, width: int, mode: str = "RGB") -> list[Image.Image]:
    """Returns windows of the photographs in the wheels of scikit-image and scikit-learn, several scales of each."""
    return [picture.copy() for picture in _photographs(count, height, width, mode)]


@functools.cache
def _photographs(count: int, height: int, width: int, mode: str) -> list[Image.Image]:
    files = []
    for package, (folder, names) in _IN_WHEELS.items():
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise RuntimeError(
                f"photographs are missing: pip install scikit-image scikit-learn ({package} is not there)"
            )
        files += [Path(spec.origin).parent / folder / name for name in names]
    return _take(files, count, height, width, mode)


def wallpapers(cache: Path, count: int, height: int, width: int, mode: str = "RGB") -> list[Image.Image]:
    """Returns windows of the photographs (JPEG files) in Debian's wallpaper packages, kept in the folder `cache`."""
    for package in _DEBIAN_PACKAGES:
        folder = cache / package
        if not folder.exists():
            cache.mkdir(parents=True, exist_ok=True)
            _command(["apt-get", "download", package], cache)
            (archive,) = cache.glob(f"{package}_*.deb")
            _command(["dpkg-deb", "-x", archive.name, f"{package}.partial"], cache)
            (cache / f"{package}.partial").rename(folder)
            archive.unlink()
    files = sorted(path for path in cache.glob("*/usr/share/backgrounds/**/*.jpg") if not path.is_symlink())
    return _take(files, count, height, width, mode)


def _command(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def _take(files: Iterable[Path], count: int, height: int, width: int, mode: str) -> list[Image.Image]:
    """Takes one window of each file in turn until there are `count`."""
    pictures, seen = [], set()
    for round_of_windows in itertools.zip_longest(*(_windows(path, height, width, mode) for path in files)):
        for picture in round_of_windows:
            if picture is not None and (pixels := picture.tobytes()) not in seen:
                seen.add(pixels)
                pictures.append(picture)
                if len(pictures) == count:
                    return pictures
    raise RuntimeError(f"only {len(pictures)} distinct windows of {height}x{width} pixels, {count} wanted")


def _windows(path: Path, height: int, width: int, mode: str) -> Iterator[Image.Image]:
    """Yields the photograph in ever smaller windows, the first as large as it allows, scaled to one size."""
    with Image.open(path) as opened:
        image = opened.convert(mode)
    scale = min(image.width / width, image.height / height)
    while scale >= 1:
        across, down = int(width * scale), int(height * scale)
        for top in range(0, image.height - down + 1, down // 2):
            for left in range(0, image.width - across + 1, across // 2):
                box = (left, top, left + across, top + down)
                yield image.resize((width, height), Image.Resampling.LANCZOS, box)
        scale /= 1.2  # slowly: small windows of large photographs are blurred, and not what people's pictures are
