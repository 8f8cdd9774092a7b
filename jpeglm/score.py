"""Bits a byte and a pixel of files under a trained run's model.

python -m jpeglm.score --workdir=DIR --images=PATH

PATH is a folder of pictures, or one that `jpeglm.prepare` wrote (then its held-out ones are taken). Each picture is
encoded canonically and scored alone, between BOS and EOS. A table of the pictures goes to standard output, the means
come last.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from flax import nnx
from tabulate import tabulate
from tqdm import tqdm

from jpeglm import checkpoint, cli, codecs, runtime, sharding
from jpeglm.data import documents
from jpeglm.errors import InputError
from jpeglm.model import llama
from jpeglm.model.loss import cross_entropy
from jpeglm.sampling.engine import bucket
from jpeglm.tokenizer import Tokenizer

FLAGS = flags.FLAGS


def score(workdir: epath.Path, found: Mapping[str, bytes], step: int | None = None) -> Iterator[tuple[str, float]]:
    """Yields (name, nats of the whole document with its EOS), one document after the other.

    Raises:
      InputError: a document longer than the run's data.seq_len.
    """
    config = checkpoint.read_config(workdir)
    tokenizer = Tokenizer.load(workdir / "tokenizer.json")
    mesh = sharding.inference_mesh(config.model.num_kv_heads, is_batched=False)
    params = checkpoint.restore_model(workdir, checkpoint.pick_step(workdir, step), config, mesh)
    # A kernel that the run was trained with need not take documents of any length, nor run here.
    graphdef, _ = llama.abstract(dataclasses.replace(llama.LlamaConfig.of(config), attention="auto"))

    @jax.jit
    def nats(params: object, tokens: jax.Array, length: jax.Array) -> jax.Array:
        place = jnp.arange(tokens.shape[1])[None]
        logits = nnx.merge(graphdef, params)(tokens, place, jnp.ones_like(tokens))
        nll, _ = cross_entropy(logits[:, :-1], tokens[:, 1:])
        return jnp.sum(jnp.where(place[:, 1:] < length, nll, 0))

    with jax.set_mesh(mesh):
        for name, document in found.items():
            ids = [tokenizer.BOS, *tokenizer.encode(document), tokenizer.EOS]
            if len(ids) > config.data.seq_len:
                raise InputError(f"{name}: {len(ids)} tokens, more than data.seq_len={config.data.seq_len}")
            padded = np.zeros((1, bucket(len(ids), config.data.seq_len)), np.int32)
            padded[0, : len(ids)] = ids
            yield name, float(nats(params, padded, len(ids)))


def main() -> None:
    runtime.start()
    workdir = epath.Path(FLAGS.workdir)
    config = checkpoint.read_config(workdir)
    codec = codecs.make(config.codec)
    found = documents.read(FLAGS.images, codec, FLAGS.num, config.data.background)
    rows = []
    for name, nats in tqdm(score(workdir, found, FLAGS.step), total=len(found), unit=codec.item, disable=None):
        bits, size = nats / np.log(2), len(found[name])
        rows.append((name, size, bits / size, bits / codec.pixels))
    sizes, per_byte, per_pixel = (np.array(column) for column in list(zip(*rows, strict=True))[1:])
    rows.append(("mean", sizes.mean(), np.average(per_byte, weights=sizes), per_pixel.mean()))
    print(tabulate(rows, headers=(codec.item, "bytes", "bits a byte", "bits a pixel"), floatfmt=".4f"))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the trained run.")
    flags.DEFINE_string("images", None, "Pictures or clips to score: a folder of files, or of prepared data.")
    flags.DEFINE_integer("num", None, "At most so many of them.", lower_bound=1)
    flags.DEFINE_integer("step", None, "Checkpoint to use; the last one if not given.")
    cli.run(main, required=("workdir", "images"))
