"""What the modules that an export keeps cost: pruned and merged, beside the frozen backbone with the same head.

    python benchmarks/pruned.py [--backbone vit_small_patch16_224] [--tile 512] [--turns 15]

All models are exported as `cegate-geo export` does and run in onnxruntime on one thread, in turns, so that other work
on the machine meets all of them; the ratio is the median over turns of the processor's time for one tile beside the
frozen model's in the same turn. Weights are random: time does not depend on them. Sets of modules: what one selection
of the default budget keeps if it takes as many of each type (even), the same of one type alone, all, and as many of
all, from the first block on, as an export keeps by default (afforded).
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Sequence

import numpy as np
import onnxruntime
import timm
import torch

from cegate_geo.peft import ModuleKey, ToolboxConfig, attach, fuse, merge
from cegate_geo.train import afford, onnx_graph
from cegate_geo.train.backbone import BackboneSpec
from cegate_geo.train.segmenter import Segmenter

KINDS = ("spatial", "semantic", "frequency")
BUDGET = 0.25


def main() -> None:
    """Print parameters, milliseconds, and the ratio to the frozen model, of each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="timm name")
    parser.add_argument("--head", default="dpt")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--sets", default="", help="names of sets beside the frozen model, by commas  [default: all]")
    given = parser.parse_args()
    torch.manual_seed(0)
    kwargs = {"num_classes": 0, "img_size": given.tile, "dynamic_img_size": True}
    vit = timm.create_model(given.backbone, pretrained=False, **kwargs).eval()
    model = Segmenter(vit, BackboneSpec(architecture="x"), head=given.head, head_dim=given.head_dim, classes=2).eval()
    depth = len(vit.blocks)
    known = {**sets(depth), "afforded": afforded(model, given.tile)}
    chosen = ("frozen", *given.sets.split(",")) if given.sets else tuple(known)
    sessions = {name: export(model, keys, given.tile) for name, keys in known.items() if name in chosen}
    seconds = measure([session for session, _ in sessions.values()], given.tile, given.turns)
    print(f"{given.backbone}, {depth} blocks, head {given.head} of {given.head_dim}, tile {given.tile}, one thread")
    for (name, (_, parameters)), own in zip(sessions.items(), seconds, strict=True):
        ratios = [mine / frozen for mine, frozen in zip(own, seconds[0], strict=True)]
        low, high = min(ratios), max(ratios)
        print(
            f"{name:14} {len(known[name]):3} modules {parameters:11,} parameters "
            f"{1000 * statistics.median(own):7.0f} ms  "
            f"ratio {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"
        )


def sets(depth: int) -> dict[str, list[ModuleKey]]:
    """Modules by the name of the set; they are spread over the depth, as a selection's are."""
    budget = round(BUDGET * len(KINDS) * depth)

    def spread(kind: str, count: int) -> list[ModuleKey]:
        return [ModuleKey(math.floor((n + 0.5) * depth / count), kind) for n in range(count)]  # type: ignore[arg-type]

    return {
        "frozen": [],
        "frozen again": [],
        "even": [key for kind in KINDS for key in spread(kind, budget // 3)],
        **{kind: spread(kind, budget) for kind in KINDS},
        "all": [key for kind in KINDS for key in spread(kind, depth)],
    }


def afforded(model: Segmenter, tile: int) -> list[ModuleKey]:
    """As many modules as an export keeps by default, none worth more for its cost than another."""
    own = copy.deepcopy(model)
    toolbox = attach(own.backbone, ToolboxConfig(kinds=tuple(afford.SLOWNESS)))
    cost = afford.costs(own, toolbox, tile)
    return list(afford.choose(cost, cost, afford.AFFORDED))


def export(model: Segmenter, keys: Sequence[ModuleKey], tile: int) -> tuple[onnxruntime.InferenceSession, int]:
    """A session of the model with these modules, and its parameters."""
    own = copy.deepcopy(model)
    if keys:
        toolbox = attach(own.backbone, ToolboxConfig(), keys=keys)
        with torch.no_grad():
            for parameter in toolbox.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        merge(toolbox)
    own.fix_size(tile)
    own.fold_norms()
    fuse(own.backbone)
    graph = onnx_graph.build_graph(own, tile_size=tile)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    content = graph.SerializeToString()
    return (
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]),
        onnx_graph.count_weights(graph),
    )


def measure(sessions: Sequence[onnxruntime.InferenceSession], tile: int, turns: int) -> list[list[float]]:
    """Seconds of the processor for one tile: of each session, of each turn. A turn before the first is not counted."""
    image = np.random.default_rng(0).random((1, 3, tile, tile), dtype=np.float32)
    seconds: list[list[float]] = [[] for _ in sessions]
    for turn in range(turns + 1):
        for own, session in zip(seconds, sessions, strict=True):
            began = time.process_time()
            session.run(None, {onnx_graph.INPUT: image})
            if turn:
                own.append(time.process_time() - began)
    return seconds


if __name__ == "__main__":
    main()
