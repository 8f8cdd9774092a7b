"""Held-out clips completed by the demo's model and by the controls: ten frames given, five written.

    python -m jpeglm.tables --config=configs/eval/demo_avc.py \
        --config.workdir=WORKDIR --config.data=DATA --config.out=OUT

Writes OUT/table.md, table.csv, table.json and report.html, where the clips move. Started again it does only what is
not there yet.
"""

from configs.eval import demo


def get_config():
    config = demo.get_config()
    with config.unlocked():
        config.num = 32  # clips a row: the first held-out ones; the reference is as many that follow
        config.ratios = (10 / 15,)  # of the frames that are given
        config.rows = ("trained", "untrained", "last_frame", "random_bytes")
        config.pretrained = ""
        config.video_extractor = "i3d"  # of the distance between whole clips: the Inception-I3D, for FVD
        config.video_weights = ""  # its weights (docs/evaluation.md); "" leaves this distance out
        config.sampling.temperature = 0.7
        config.sampling.max_tokens = 1_536  # a file, prompt included: the longest held-out clip takes 1,395
        config.sampling.slots = 16
    return config
