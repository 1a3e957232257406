"""What class and confidence cost behind the session, in numpy, and what they would cost as a part of the graph.

    python benchmarks/engine/tail.py

CPU milliseconds on one thread for a tile of 512 px, the model itself (a convolution of 1 px) taken off: the least of
five rounds, and their median. A graph can say classes only where tiles are not blended: `--stitch crop`, one view, one
model.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from cegate_geo.infer.stitch import winners

SIDE, ROUNDS, CALLS = 512, 5, 8
CLASSES = (3, 6, 19)
make = helper.make_node


def argmax_tail(classes: int) -> tuple[list[Any], dict[str, Any]]:
    """Nodes from probabilities `p` to class `c` and winner's probability `m`, by the operators for it."""
    del classes
    best = make("ReduceMax", ["p"], ["m"], axes=[1])
    return [make("ArgMax", ["p"], ["i"], axis=1), make("Cast", ["i"], ["c"], to=TensorProto.UINT8), best], {}


def running_tail(classes: int) -> tuple[list[Any], dict[str, Any]]:
    """The same by a running maximum, as numpy has it."""
    names = [f"p{n}" for n in range(classes)]
    nodes = [make("Split", ["p", "ones"], names, axis=1)]
    weights: dict[str, Any] = {"ones": np.ones(classes, np.int64), "i0": np.zeros((1, 1, SIDE, SIDE), np.int32)}
    best = names[0]
    for n, name in enumerate(names[1:], start=1):
        weights[f"n{n}"] = np.array(n, np.int32)
        top = "m" if n == classes - 1 else f"b{n}"
        nodes += [
            make("Greater", [name, best], [f"g{n}"]),
            make("Where", [f"g{n}", f"n{n}", f"i{n - 1}"], [f"i{n}"]),
            make("Max", [best, name], [top]),
        ]
        best = top
    return [*nodes, make("Cast", [f"i{classes - 1}"], ["c"], to=TensorProto.UINT8)], weights


def session(classes: int, tail: Callable[[int], tuple[list[Any], dict[str, Any]]] | None) -> Any:
    """A model of `classes`, with or without its tail."""
    nodes, weights = tail(classes) if tail is not None else ([], {})
    kernel = np.random.default_rng(0).random((classes, 3, 1, 1), dtype=np.float32) / 3
    outputs = [("p", TensorProto.FLOAT, classes)]
    if tail is not None:
        nodes = [*nodes, make("Mul", ["m", "top"], ["s"]), make("Round", ["s"], ["r"])]
        nodes.append(make("Cast", ["r"], ["q"], to=TensorProto.UINT8))
        weights["top"] = np.array(255, np.float32)
        outputs = [("c", TensorProto.UINT8, 1), ("q", TensorProto.UINT8, 1)]
    graph = helper.make_graph(
        [make("Conv", ["x", "kernel"], ["p"]), *nodes],
        "tail",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, kind, [1, channels, SIDE, SIDE]) for name, kind, channels in outputs],
        [numpy_helper.from_array(value, name) for name, value in {"kernel": kernel, **weights}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def spent_ms(call: Callable[[], object]) -> list[float]:
    """CPU milliseconds of a call, round by round."""
    call()
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(CALLS):
            call()
        rounds.append((time.process_time() - started) / CALLS * 1000)
    return rounds


def main() -> None:
    """Print a row for each number of classes."""
    tile = {"x": np.random.default_rng(1).random((1, 3, SIDE, SIDE), dtype=np.float32)}
    print(f"{'classes':>8}{'numpy':>16}{'ArgMax':>16}{'running':>16}")
    for classes in CLASSES:
        plain = session(classes, None)
        alone = spent_ms(lambda plain=plain: plain.run(None, tile))

        def by_numpy(plain: Any = plain) -> tuple[Any, Any]:
            channels, best = winners(plain.run(None, tile)[0][0])
            np.multiply(best, np.float32(255), out=best)
            return channels, np.rint(best, out=best).astype(np.uint8)

        expected, row = by_numpy(), [spent_ms(by_numpy)]
        for tail in (argmax_tail, running_tail):
            whole = session(classes, tail)
            found = whole.run(None, tile)
            for mine, theirs in zip(expected, found, strict=True):
                assert (mine == theirs.reshape(mine.shape)).all(), "they compute something else"
            row.append(spent_ms(lambda whole=whole: whole.run(None, tile)))
        cells = [f"{min(r) - min(alone):.2f} ({statistics.median(r) - statistics.median(alone):.2f})" for r in row]
        print(f"{classes:>8}" + "".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
