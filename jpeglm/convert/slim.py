"""Makes a small workdir to share: one checkpoint's parameters, and what is needed to use them."""

import jax
from etils import epath

from jpeglm.core import checkpoint, files, retries, sharding
from jpeglm.core import config as config_lib
from jpeglm.core.errors import InputError
from jpeglm.core.registry import MODELS
from jpeglm.core.workdir import read_config
from jpeglm.models import Model, networks


def slim(workdir: epath.Path, target: epath.Path, step: int | None = None) -> Model:
    """Copies what is needed to use a run: one checkpoint's parameters, config, tokenizer, manifest and metrics.

    All parameters are held in memory, once.

    Args:
      workdir: of the run.
      target: the folder to be made.
      step: of the checkpoint; None takes the last.

    Returns:
      the run's model.

    Raises:
      InputError: there is no run or no such checkpoint, the checkpoint is damaged, or `target` exists or cannot be
        written.
    """
    config = read_config(workdir)
    model, step = MODELS.of(config), checkpoint.pick_step(workdir, step)
    if target.exists():
        raise InputError(f"{target} exists; nothing is overwritten")
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    params = checkpoint.restore_model(workdir, step, networks.laid_out(model, mesh))
    with files.new_folder(target) as beside:
        saver = checkpoint.Saver(beside, config.checkpoint)
        saver.save(step, {"params": params})
        saver.close()
        for name in ("tokenizer.json", "manifest.json", "metrics.jsonl"):
            text = retries.read_text(workdir / name)
            if text is not None:  # an imported model has no data and no metrics
                (beside / name).write_text(text)
        for folder in (beside / "checkpoints" / str(step), beside / "checkpoints" / str(step) / "default"):
            (folder / "commit_success.txt").write_text("committed\n")  # Orbax's text names a path of this machine
        config.data.path = ""
        (beside / "config.json").write_text(config_lib.to_json(config))
    return model
