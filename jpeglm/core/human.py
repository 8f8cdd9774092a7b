"""Formats numbers for people."""


def human_count(number: float) -> str:
    """12_345_678 -> '12.3M'."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def human_bytes(number: float) -> str:
    """3_221_225_472 -> '3.0 GiB'."""
    unit, size = next(
        ((u, s) for u, s in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)) if number >= s), ("KiB", 1024)
    )
    return f"{number / size:.1f} {unit}"


def human_time(seconds: float) -> str:
    """3_725 -> '1:02:05'; with days in front if there are any."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}d " if days else "") + f"{hours}:{minutes:02d}:{seconds:02d}"


def human_seconds(seconds: float) -> str:
    """1.5 -> '1.50 s', 0.0123 -> '12.3 ms'."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
