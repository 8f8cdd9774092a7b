"""Held-out digits completed by the demo's model and by the controls, at three ratios.

    python -m jpeglm.tables --config=configs/eval/demo.py \
        --config.workdir=WORKDIR --config.data=DATA --config.out=OUT

A network completes each digit twice: by the plain sampling, and among the legal tokens of the codec's grammar.
Writes OUT/table.md, table.csv, table.json and report.html. Started again it does only what is not there yet.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.workdir = ""  # of a run, as `jpeglm.train` leaves it
    config.data = ""  # that the run was trained on, as `jpeglm.prepare` leaves it
    config.out = ""  # folder to write to
    config.platform = ""  # cpu, gpu or tpu; "" takes what JAX finds

    config.num = 128  # pictures a row: the first held-out ones; the reference is as many that follow
    config.ratios = (0.25, 0.5, 0.75)  # of the MCUs that are given
    config.rows = ("trained", "pretrained", "untrained", "random_bytes", "flat", "training_mean", "training_picture")
    config.pretrained = "pretrained/demo"  # a second workdir, of the same held-out files; "" leaves the row out
    config.extractor = "efficientnet_lite0"  # of the features that the distance is taken of; or "inception", for FID
    config.weights = ""  # of the 2015 Inception (docs/evaluation.md)
    config.mode = "clean"  # of the 2015 Inception: clean, legacy_tensorflow or legacy_pytorch
    config.ngram_tokens = 16_000_000  # that the n-gram model is fitted on, at most: 1 to 1.5 GiB; 0 leaves it out
    config.seed = 0  # of the draws

    config.sampling = ConfigDict()
    config.sampling.temperature = 0.7  # a model this small needs it: docs/measurements.md
    config.sampling.top_k = 40
    config.sampling.top_p = 0.9
    config.sampling.max_tokens = 256  # a file, prompt included: a chunk of the demo, whose longest file takes 217
    config.sampling.slots = 64  # files written at once
    return config.lock()
