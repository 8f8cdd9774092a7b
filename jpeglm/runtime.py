"""Starting JAX: the platform that was asked for, or one clear line."""

import jax

from jpeglm.errors import InputError

PLATFORMS = {"": None, "cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}


def start(platform: str = "") -> list[jax.Device]:
    """All devices of the job. `platform` is "", "cpu", "gpu" or "tpu"; one that is absent is an InputError."""
    if platform not in PLATFORMS:
        raise InputError(f"platform={platform!r} is none of cpu, gpu, tpu")
    if PLATFORMS[platform]:
        jax.config.update("jax_platforms", PLATFORMS[platform])
    try:
        return jax.devices()
    except RuntimeError as error:
        asked = platform or jax.config.jax_platforms
        raise InputError(f"platform {asked!r} was asked for and is not there: {error}") from error
