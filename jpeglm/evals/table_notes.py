"""What a completion table says of itself in words: who is nearer to real pictures, and how to read the numbers."""

import itertools

from ml_collections import ConfigDict

from jpeglm.codecs.avc import AvcCodec
from jpeglm.evals.completion import MODELS, TITLES, TRAINED, TRAINING_PICTURES, Methods, title_of
from jpeglm.evals.features import Extractor
from jpeglm.evals.table_rows import GRAMMAR_HEADER, NGRAM_ORDER, Table, methods_of
from jpeglm.evals.table_text import given, number


def verdicts(table: Table) -> list[str]:
    """Says of each trained network which controls are nearer to real pictures than it is, at which ratio.

    By the plain sampling, then by that with the grammar, where there is one: then the untrained network has it, too.
    """
    rows, sentences = table.rows, []
    for method, grammar in itertools.product(TRAINED, (False, True)):
        own = [row for row in rows if row.method == method and (row.distance_with_grammar is not None or not grammar)]
        subject = f"“{title_of(method, grammar)}”"
        real = "real pictures" if table.item == "picture" else "frames of real clips"
        nearer: dict[str, list[str]] = {}
        for row in own:
            for other in rows:
                ours, theirs = row.distance_by(grammar), other.distance_by(grammar)
                if other.ratio == row.ratio and other.method not in TRAINED and theirs <= ours:
                    place = f"at {given(table, row.ratio)} ({theirs:,.2f} against {ours:,.2f})"
                    nearer.setdefault(title_of(other.method, grammar and other.method in MODELS), []).append(place)
        if nearer:
            lost = "; ".join(f"“{title}” {', '.join(places)}" for title, places in nearer.items())
            sentences.append(f"{subject} is farther from {real} than {lost}.")
        elif own:
            sentences.append(f"{subject} is nearer to {real} than every control, at every ratio.")
    for row, still in itertools.product(rows, rows):
        if row.method in TRAINED and still.method == "last_frame" and still.ratio == row.ratio:
            compared = [
                f"{what} {number(getattr(still, name), digits)} against {number(getattr(row, name), digits)}"
                for what, name, digits in (
                    ("distance", "distance", 2),
                    ("to true frames", "true_distance", 3),
                    ("PSNR", "psnr", 2),
                    ("SSIM", "ssim", 4),
                )
            ]
            sentences.append(
                f"“{still.title}” against “{row.title}” at {given(table, row.ratio)}: {', '.join(compared)}."
            )
    return sentences


def notes(
    table: Table,
    config: ConfigDict,
    methods: Methods,
    extractor: Extractor,
    video_extractor: Extractor | None = None,
) -> list[str]:
    """What a reader has to know to read the numbers right."""
    codec, num = methods.codec, config.num
    is_clips = isinstance(codec, AvcCodec)
    unreadable = "as a decoder makes it up" if is_clips else "as leniently decoded, unreadable MCUs in mid-grey"
    twice = ", a network's a second one with the grammar" if codec.has_grammar else ""
    lines = [
        f"Prompts come from the first {num:,} held-out files in the order of the shards, the reference from the "
        f"{num:,} that follow. That order is by a hash of the files: nobody chose them.",
        f"Every row has {num:,} {codec.item}s and one completion a prompt{twice}. A file that does not decode "
        f"strictly counts against “valid” and enters the distance {unreadable}: none is dropped.",
    ]
    if codec.has_grammar:
        lines += [
            "The grammar is an automaton of all legal files of the codec. With it, a network draws only tokens that "
            "lead to a legal file which ends within the budget; without it, from all tokens, as in the paper.",
            f"“{GRAMMAR_HEADER}” repeats the column before it for files written with the grammar, from the same "
            "prompts and random numbers. These are all valid by construction, whoever the model. All other columns "
            "are without it: “valid” is a property of the model and says how well it has learnt the format.",
            "“removed” is the probability that the grammar took away from a model at a token, before temperature, "
            "top-k and top-p: the mean over each file's tokens, then over the files. Beginnings are always legal "
            "there.",
        ]
    what = "the frames behind the given ones, each" if is_clips else "pictures"
    lines += [
        f"{extractor.metric} is the Fréchet distance between {extractor.dim:,} features of {extractor.name}, {what} "
        f"stretched to {extractor.size}x{extractor.size}. "
        + (
            f"The weights are those of FID, the mode is {extractor.mode}: numbers of other modes are no peers."
            if extractor.metric.startswith("FID")
            else "It is not FID and is not to be set beside one."
        ),
        "Both sides were compressed by the same codec at the same quality. The floor is the distance that the "
        "prompts' originals themselves have to the reference: no method is expected below it.",
        "A larger share given leaves less to get wrong, so all distances fall with the ratio: compare methods "
        "within one ratio.",
        f"“{codec.unit}s readable”: of the {codec.unit}s to be completed, the share that a tolerant decoder reads in "
        "sequence before the first that it cannot. “Ended” means that the model wrote its end token within the "
        "budget.",
    ]
    if is_clips:
        lines += [
            "“concealed” is the share of the macroblocks to be completed that ffmpeg's decoder made up, or that never "
            "came: a frame that is missing shows the one before it. “valid” wants every slice of every frame, once "
            "and in order, and a decoder without a word.",
            "“to true frames” is the mean distance between the features of each completed frame and those of the true "
            "one.",
            "PSNR is of the squared error of all completed frames of a row together (in RGB), SSIM the mean over "
            "frames; both against the clip's own continuation, of which a prompt allows many: a still frame is a "
            "strong guess by both.",
        ]
    if video_extractor:
        lines.append(
            f"{video_extractor.metric} is the Fréchet distance between {video_extractor.dim:,} features of "
            f"{video_extractor.name} of whole clips, the given frames too; it is FVD with FVD's weights alone."
        )
    counts = sorted({num * (table.units - kept) for kept in table.kept.values()}) if is_clips else [num]
    if counts[0] < max(2048, extractor.dim):
        size = f"{' or '.join(f'{count:,}' for count in counts)} {'frames' if is_clips else 'pictures'}"
        lines.append(_biased(extractor.metric, size))
    if video_extractor and num < 2048:
        lines.append(_biased(video_extractor.metric, f"{num:,} clips"))
    controls = _controls(config, methods)
    lines += [controls[row] for row in methods_of(config) if row in controls]
    return [*lines, _language_models(methods)]


def _biased(metric: str, size: str) -> str:
    return (
        f"With {size} a side {metric} is biased upwards and depends on that number: it compares rows of this table "
        "and nothing else."
    )


def _controls(config: ConfigDict, methods: Methods) -> dict[str, str]:
    """What the rows are, by row."""
    is_clips = isinstance(methods.codec, AvcCodec)
    pool = f"{min(TRAINING_PICTURES, methods.manifest['splits']['train']['documents']):,}"
    title = {row: f"“{TITLES[row]}”" for row in TITLES}
    twice = ", both times" if methods.codec.has_grammar else ""
    bytes_ = "has uniformly random bytes behind the prompt, as many as the original has there, "
    if is_clips:
        bytes_ += "between the start codes of its slices: a decoder conceals nearly all of it."
    else:
        bytes_ += "no markers put among them: nearly all of it is unreadable and shows as grey."
    return {
        "pretrained": f"{title['pretrained']} is the checkpoint in {config.pretrained}, not trained by this run; it "
        "held out the same files.",
        "untrained": f"{title['untrained']} is the same network before its first step, sampled alike{twice}.",
        "last_frame": f"{title['last_frame']} copies the last frame that was given, in skipped slices: a valid file.",
        "random_bytes": f"{title['random_bytes']} {bytes_}",
        "flat": f"{title['flat']} has mid-grey MCUs behind the prompt, a valid file.",
        "training_mean": f"{title['training_mean']} has the MCUs of the mean of {pool} training pictures there, a "
        "valid file.",
        "training_picture": f"{title['training_picture']} has the MCUs of one of these {pool} there, a valid file: "
        "real strokes that know nothing of the prompt.",
    }


def _language_models(methods: Methods) -> str:
    run = methods.run_config
    heldout, seen = methods.manifest["splits"]["heldout"]["chunks"], run.eval.batches * run.optim.batch_size
    return (
        f"The {NGRAM_ORDER}-gram model (modified Kneser-Ney) was fitted on the tokens that the network trained on; "
        + (
            "both are scored on every held-out token that follows another within a chunk."
            if seen >= heldout
            else f"it is scored on all {heldout:,} held-out chunks, the network on the first {seen:,}."
        )
    )
