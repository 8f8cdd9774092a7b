"""The other side of the benchmarks: trains and samples with transformers' Llama in torch.

    python -m benchmarks.peer '{"do": "train", ...}'

is started by `benchmarks.train_step` and `benchmarks.decode`, and prints one line of JSON. It imports neither JAX nor
jpeglm, so that it can run in an environment of its own.
"""

import contextlib
import ctypes
import functools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import create_selective_checkpoint_contexts

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
KEEP = {-8: 1, -4: 0, -1: -1, -2: 256 << 20}  # mallopt's settings in jpeglm/train/allocator.py
RECOMPUTE = ("all", "attention", "none")
COMPILE = ("layers", "none")


def huggingface_llama(
    config: Any, max_length: int, attention: str = "sdpa", dtype: str | None = None
) -> transformers.LlamaForCausalLM:
    """transformers' Llama of the same shapes, with random weights, made on the GPU if there is one.

    Args:
      config: with the attributes of `jpeglm.models.llama.LlamaConfig`.
      max_length: the most positions.
      attention: an `attn_implementation` of transformers.
      dtype: of the parameters; None: `config.dtype`.
    """
    shapes = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=config.ffn_width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.norm_eps,
        max_position_embeddings=max_length,
        tie_word_embeddings=False,
        attn_implementation=attention,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return transformers.LlamaForCausalLM(shapes).to(getattr(torch, dtype or config.dtype))


def train(job: dict[str, Any]) -> dict[str, Any]:
    """A minimal training loop: float32 parameters, gradients and moments, autocast to bfloat16, AdamW, clipping.

    To make torch as fast as possible, layers can be compiled one by one (if the whole model is compiled, transformers
    passes an explicit mask, which rules out flash attention), remaining float32 products use TF32, the residual stream
    is in bfloat16, AdamW is fused on a GPU, and attention can be pinned to one kernel, so that it does not fall back
    to a slow one unnoticed.

    Args:
      job: tokens (path of an .npy, [chunks, seq_len]), batch_size, steps, warm (steps that do not count), model
        (attributes of LlamaConfig), optim (section of the run's config), and how: recompute (of `RECOMPUTE`), compile
        (of `COMPILE`), attention ("sdpa", torch's own choice; "flash", "cudnn": that kernel or an error;
        "flash_attention_2": the package flash-attn), allocator ("keep": glibc keeps freed memory, as in our training;
        "default").

    Returns:
      tokens per second (the median), seconds of each step, losses, and the most bytes of the GPU in use (None on a
      CPU).
    """
    if job["allocator"] == "keep":
        mallopt = ctypes.CDLL(None).mallopt
        if not all([mallopt(key, value) for key, value in KEEP.items()]):
            raise SystemExit("glibc refuses a setting of its allocator")
    config, optim = SimpleNamespace(**job["model"]), SimpleNamespace(**job["optim"])
    tokens = np.load(job["tokens"], mmap_mode="r")
    batch_size, seq_len = job["batch_size"], tokens.shape[1]
    is_mixed = config.dtype == "bfloat16"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if is_mixed else "highest")
    implementation = "sdpa" if job["attention"] in BACKENDS else job["attention"]
    model = huggingface_llama(config, seq_len, implementation, "float32").train()
    model.config.use_cache = False
    if is_mixed:
        model.model.embed_tokens.register_forward_hook(lambda _, inputs, x: x.to(torch.bfloat16))
    if job["recompute"] != "none":
        how = {"use_reentrant": False, "preserve_rng_state": False}
        if job["recompute"] == "attention":
            how["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _attention_ops())
        model.gradient_checkpointing_enable(how)
    if job["compile"] == "layers":
        for layer in model.model.layers:
            layer.compile()
    is_cuda = model.device.type == "cuda"
    optimizer = torch.optim.AdamW(
        model.parameters(), optim.lr, (optim.b1, optim.b2), optim.eps, optim.weight_decay, fused=is_cuda or None
    )

    def batch(step: int) -> torch.Tensor:
        rows = [(step * batch_size + row) % len(tokens) for row in range(batch_size)]
        return torch.from_numpy(tokens[rows].astype(np.int64)).to(model.device)

    taken, losses, started = [], [], time.perf_counter()
    with _pinned(job["attention"]):
        for step in range(job["steps"]):
            ids = batch(step)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=is_mixed):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())  # waits for the step, as ours does
            taken.append(time.perf_counter() - started)
            started = time.perf_counter()
    taken = taken[job["warm"] :]
    return {
        "tokens_per_second": batch_size * seq_len / statistics.median(taken),
        "step_seconds": taken,
        "losses": losses,
        "peak_bytes": torch.cuda.max_memory_allocated() if is_cuda else None,
    }


def _attention_ops() -> list[Any]:
    """The operations whose outputs recompute "attention" keeps: the kernels that may compute attention."""
    names = ["flash_attention", "cudnn_attention", "efficient_attention", "flash_attention_for_cpu"]
    found = [getattr(torch.ops.aten, f"_scaled_dot_product_{name}", None) for name in names]
    return [op.default for op in found if op is not None]


@contextlib.contextmanager
def _pinned(attention: str) -> Iterator[None]:
    if attention in BACKENDS:
        with sdpa_kernel(BACKENDS[attention]):
            yield
    else:
        yield


def decode(job: dict[str, Any]) -> dict[str, Any]:
    """Samples from random prompts to exactly `length` tokens by `generate`; on a GPU compiled, with a static cache.

    Args:
      job: model (attributes of LlamaConfig), slots, prompt and length (in tokens), repeats, and settings (temperature,
        top_k, top_p).

    Returns:
      seconds of whole calls, seconds of calls for one new token, which only prefill, and the most bytes of the GPU in
      use (None on a CPU).
    """
    config = SimpleNamespace(**job["model"])
    torch.manual_seed(0)
    model = huggingface_llama(config, job["length"]).eval()
    is_cuda = model.device.type == "cuda"
    prompt = torch.randint(3, config.vocab_size, (job["slots"], job["prompt"]), device=model.device)
    how = job["settings"] | {"do_sample": True, "pad_token_id": 0}
    if is_cuda:
        how["cache_implementation"] = "static"  # with which transformers compiles decoding

    def run(new: int) -> None:
        ids = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), min_new_tokens=new, max_new_tokens=new, **how
        )
        assert ids.shape == (job["slots"], job["prompt"] + new)
        if is_cuda:
            torch.cuda.synchronize()

    def timed(new: int) -> list[float]:
        for _ in range(2 if is_cuda else 1):
            run(new)  # compiles, and records CUDA's graphs
        taken = []
        for _ in range(job["repeats"]):
            started = time.perf_counter()
            run(new)
            taken.append(time.perf_counter() - started)
        return taken

    whole, prefill = timed(job["length"] - job["prompt"]), timed(1)
    peak = torch.cuda.max_memory_allocated() if is_cuda else None
    return {"seconds": whole, "prefill_seconds": prefill, "peak_bytes": peak}


def main() -> None:
    """Runs the job of the command line and prints its result."""
    job = json.loads(sys.argv[1])
    result = {"train": train, "decode": decode}[job["do"]](job)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(result | {"versions": versions}))


if __name__ == "__main__":
    main()
