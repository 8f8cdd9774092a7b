"""Flags of libtpu, the TPU's compiler and runtime, which reads them from LIBTPU_INIT_ARGS when it is loaded."""

import os
from importlib import metadata

VERSION = "0.0.42"  # of libtpu, with which the flags were tried
# Transfers between chips run beside matrix products, and all-gathers are not replaced by all-reduces of padded parts.
# Chosen by what `jpeglm.aot` says of the training step: docs/measurements.md.
FLAGS = (
    "--xla_enable_async_all_gather=true",
    "--xla_tpu_prefer_async_allgather_to_allreduce=true",
    "--xla_tpu_enable_async_collective_fusion=true",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "--xla_tpu_overlap_compute_collective_tc=true",
)


def set_flags() -> None:
    """Sets the flags for this process, before libtpu is loaded.

    A value that the user has set stays, also an empty one. Another version of libtpu gets no flags: it would end the
    process if it did not know one of them.
    """
    try:
        version = metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        return
    if version == VERSION or version.startswith(f"{VERSION}."):
        os.environ.setdefault("LIBTPU_INIT_ARGS", " ".join(FLAGS))
