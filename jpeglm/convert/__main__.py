"""Imports and exports Hugging Face weights, makes small copies of runs, and converts the weights of FID.

python -m jpeglm.convert import SRC WORKDIR [--config=configs/jpeglm_7b.py]
python -m jpeglm.convert export WORKDIR DST [--step=N] [--dtype=bfloat16]
python -m jpeglm.convert slim WORKDIR DST [--step=N]
python -m jpeglm.convert inception FILE.pth FILE.safetensors

`import` makes a WORKDIR for `jpeglm.sample` and `jpeglm.score`; `jpeglm.train` can start from it with
--config.init_from=WORKDIR. The config gives codec and data.seq_len; shapes come from SRC/config.json. `export` makes a
directory that transformers' LlamaForCausalLM and AutoTokenizer load. `slim` makes a WORKDIR to share: one checkpoint
without the optimiser's state, a third of its size. `inception` checks the weights of FID and rewrites them, so that
`jpeglm.fid` need not read torch's formats. All of them write atomically. `import` and `export` keep one parameter (of
all layers) in memory at a time; `slim` and `inception` keep all of them.
"""

from pathlib import Path

from absl import flags
from etils import epath

from jpeglm.convert import from_huggingface, inception, slim, to_huggingface
from jpeglm.core import cli, distributed
from jpeglm.core import config as config_lib
from jpeglm.core.errors import InputError
from jpeglm.core.files import check_outside
from jpeglm.models import Model

FLAGS = flags.FLAGS
_FLAGS_OF = {"import": ("config",), "export": ("step", "dtype"), "slim": ("step",), "inception": ()}


def main(direction: str, source: str, target: str) -> None:
    """Converts `source` to `target`. `direction`: one of import, export, slim and inception."""
    if direction not in _FLAGS_OF:
        raise InputError(f"{direction!r} is none of {', '.join(_FLAGS_OF)}")
    for name in sorted({name for names in _FLAGS_OF.values() for name in names}):
        if name not in _FLAGS_OF[direction] and FLAGS[name].present:
            owners = " and ".join(other for other, names in _FLAGS_OF.items() if name in names)
            raise InputError(f"--{name} belongs to {owners}, not to {direction}")
    check_outside(target, SRC=source)
    if direction == "inception":
        inception.convert(Path(source), Path(target))
        return
    distributed.start("cpu")
    model: Model
    if direction == "import":
        config = FLAGS.config or config_lib.base()
        config_lib.check(config)
        model = from_huggingface.import_model(Path(source), Path(target), config)
    elif direction == "slim":
        model = slim.slim(epath.Path(source), epath.Path(target), FLAGS.step)
    else:
        model = to_huggingface.export_model(epath.Path(source), Path(target), FLAGS.step, FLAGS.dtype)
    print(f"{target}: {model.num_layers} layers, {model.num_parameters:,} parameters, {model.vocab_size} entries")


if __name__ == "__main__":
    cli.define_config("The run's config file; the 7B's if not given.")
    flags.DEFINE_integer("step", None, "Checkpoint to take; the last one if not given.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the exported weights.")
    cli.run(main, positional=("import|export|slim|inception", "SRC", "DST"))
