"""Prints the kind of JAX's first device, or fails: python -m tests.gpu.device."""

import jax

if __name__ == "__main__":
    print(jax.devices()[0].device_kind)
