"""Every key that a run's config may hold, with its default: the 7B JPEG-LM.

Files in `configs/` start from `base()` and change what differs. The ConfigDict is locked, so a misspelt key is an
error and not a silent default.
"""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """JPEG-LM 7B on 256x256 colour images (JPEG-LM, sections 3 and 4); silent points as in BUILD_NOTES.md."""
    config = ConfigDict()
    config.seed = 0  # parameters and the order of chunks
    config.platform = ""  # cpu, gpu or tpu; "" takes what JAX finds
    config.deterministic = (
        False  # the same bits at each resume on GPUs, for some speed; CPUs and TPUs give them anyway
    )
    config.steps = 74_000
    config.init_from = ""  # workdir whose newest weights a new run begins with
    config.watchdog = 900  # seconds that a step, a batch of an evaluation or a wait for a checkpoint may take; 0: any
    config.profile = 0  # so many steps, from the third on, are traced into WORKDIR/profile

    config.codec = ConfigDict()
    config.codec.name = "jpeg"
    config.codec.height = 256  # pixels
    config.codec.width = 256
    config.codec.mode = "RGB"  # or "L", greyscale
    config.codec.quality = 25

    config.tokenizer = ConfigDict()
    config.tokenizer.vocab_size = 320  # specials, bytes and merges together
    config.tokenizer.documents = 10_000  # learnt from so many

    config.data = ConfigDict()
    config.data.path = ""  # folder that `jpeglm.prepare` wrote
    config.data.seq_len = 12_288  # tokens a chunk
    config.data.verify = True  # compare the checksum of every shard at each start; False: its size
    config.data.shards = 256
    config.data.holdout = 0.001  # fraction of the documents, or (an integer) their number
    # Variants to add of each training picture (jpeglm/data/augment.py); of clips, at most so many later windows.
    config.data.augment = 0
    config.data.stride = 0  # frames from the beginning of one window of a clip to the next; 0: as many as a clip has
    config.data.seed = 0  # order of documents and held-out split

    config.model = ConfigDict()
    config.model.num_layers = 32
    config.model.width = 4096
    config.model.num_heads = 32
    config.model.num_kv_heads = 32
    config.model.head_dim = 128
    config.model.ffn_width = 11_008
    config.model.norm_eps = 1e-5
    config.model.rope_theta = 10_000.0
    config.model.qk_norm = False
    config.model.mask_documents = False  # the papers concatenate without a mask
    config.model.dtype = "bfloat16"  # of the computation; parameters, softmax and loss are float32
    config.model.remat = "full"  # "none", or "attention": recompute all of a layer but what attention gave
    config.model.attention = "auto"  # or blockwise, splash (TPU), cudnn, triton (GPU): jpeglm/model/attention.py

    config.optim = ConfigDict()
    config.optim.batch_size = 256  # chunks a step, the same on every topology
    config.optim.accumulate = 1  # microbatches a step; divides batch_size
    config.optim.lr = 3e-4
    config.optim.warmup_steps = 2_000
    config.optim.final_lr_ratio = 0.1  # cosine down to this share of lr
    config.optim.b1 = 0.9
    config.optim.b2 = 0.95
    config.optim.eps = 1e-8
    config.optim.weight_decay = 0.1
    config.optim.clip_norm = 1.0
    config.optim.z_loss = 0.0

    config.mesh = ConfigDict()  # one axis may be -1: all the devices that the others leave
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.mesh.context = 1
    config.mesh.tensor = 1

    config.eval = ConfigDict()
    config.eval.every = 1_000  # steps
    config.eval.batches = 16  # of batch_size held-out chunks; fewer where the split is smaller

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 500  # steps
    config.checkpoint.keep = 3  # newest ones
    config.checkpoint.keep_every = 10_000  # and each step divisible by this, for ever

    config.log = ConfigDict()
    config.log.every = 10  # steps
    return config.lock()


def avc() -> ConfigDict:
    """The codec section of AVC-LM (sections 3.1 and 4.2), for `config.codec`."""
    codec = ConfigDict()
    codec.name = "avc"
    codec.height = 144  # pixels
    codec.width = 256
    codec.fps = 3  # frames a second
    codec.frames = 15  # of a clip: its first 5 seconds
    codec.qp = 37  # quantiser
    codec.strip_headers = False  # True leaves out parameter sets and x264's message, the same for all clips
    return codec.lock()
