"""Clips for tests: real films that packages ship, and what ffmpeg makes of them when it is called as by hand."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

FILMS = Path(__file__).parent.parent / ".cache/clips/films"  # ./launch/test.sh puts them there
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def ffmpeg(*arguments: object) -> bytes:
    """Runs ffmpeg, which must not complain; returns what it wrote to standard output."""
    command = [FFMPEG, "-nostdin", "-y", "-v", "error", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    return done.stdout


def papers_command(path: Path, size: str = "256:144", fps: int = 3, seconds: str = "5", before: tuple = ()) -> bytes:
    """The stream that the paper's own command line gives (AVC-LM, appendix B)."""
    filters = f"fps={fps},scale={size}:force_original_aspect_ratio=decrease,pad={size}:(ow-iw)/2:(oh-ih)/2"
    options = (
        "-c:v libx264 -pix_fmt yuv420p -profile:v baseline -qp 37 -bf 0 -an -sn -x264opts slice-max-mbs=1 -trellis 0 "
        "-me_method dia -threads 1 -subq 0 -psy 0 -mixed-refs 0 -fast-pskip 0 -partitions none -refs 3 "
        "-bsf:v h264_mp4toannexb -f h264"
    )
    return ffmpeg(*before, "-i", path, "-vf", filters, "-t", seconds, *options.split(), "-")


def planes(stream: bytes, height: int = 144, width: int = 256, decoder: str = "h264") -> np.ndarray:
    """The frames that a decoder of ffmpeg gives, uint8 [frames, height * 3 / 2, width]: Y, then U and V."""
    command = [FFMPEG, "-nostdin", "-v", "quiet", "-f", "h264", "-c:v", decoder, "-i", "-", "-fps_mode", "passthrough"]
    done = subprocess.run([*command, "-pix_fmt", "yuv420p", "-f", "rawvideo", "-"], input=stream, capture_output=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, height * 3 // 2, width)


def transcoded(film: str, folder: Path, suffix: str, *options: object) -> Path:
    """A film of the packages in another container or form."""
    path = folder / f"{Path(film).stem}{suffix}"
    if not path.exists():
        ffmpeg("-i", FILMS / film, "-an", *options, path)
    return path
