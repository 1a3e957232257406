"""Adapt the shipped base model to labelled polygons from Python, export it, and look at what the gate chose.

    python examples/adapt_from_python.py demo-out/region_a.tif demo-out/region_a_labels.gpkg class /tmp/run

Needs the extra `train`. Without Python: `cegate-geo adapt CONFIG.toml -o RUN/`, with the same settings in the file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pyogrio

from cegate_geo.train.config import AdaptConfig, ModelConfig, PeftConfig, SourceConfig, TrainConfig
from cegate_geo.train.export import export_run
from cegate_geo.train.loop import AdaptProgress, adapt


def class_names(labels: Path, field: str) -> list[str]:
    """The values of a field, 'other' first: it is what no polygon covers."""
    _, _, _, columns = pyogrio.raw.read(labels, columns=[field], read_geometry=False)
    found = sorted(set(columns[0]) - {"other"})
    return ["other", *found]


def show(at: AdaptProgress) -> None:
    """Called after each step."""
    print(f"\rstep {at.step} of {at.steps}, loss {at.loss:.3f}   ", end="", file=sys.stderr)


def main() -> int:
    """Adapt, export, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="rasters: a path or a pattern")
    parser.add_argument("labels", type=Path, help="polygons in any CRS")
    parser.add_argument("field", help="field that holds the class")
    parser.add_argument("run", type=Path, help="folder for the run; must not hold one")
    parser.add_argument("--weights", default="shipped", help="'shipped', 'random', or a file")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--crop", type=int, default=256, help="side of a training chip in pixels")
    arguments = parser.parse_args()

    config = AdaptConfig(
        classes=dict(enumerate(class_names(arguments.labels, arguments.field))),
        source=(SourceConfig(images=arguments.images, labels=str(arguments.labels), label_field=arguments.field),),
        model=ModelConfig(
            backbone="vit_tiny_patch16_224",
            weights=arguments.weights,
            head="dpt-detail",
            head_dim=64,
            tile_size=arguments.crop,
        ),
        peft=PeftConfig(budget=0.25, every=max(1, arguments.steps // 6), samples=8),
        train=TrainConfig(
            steps=arguments.steps, crop=arguments.crop, lr=1e-3, head_lr=2e-3, ema=0.97, validate_every=arguments.steps
        ),
    )
    result = adapt(config, arguments.run, progress=show)
    print(file=sys.stderr)
    if result.metrics is not None:
        print(f"mean IoU on held-out blocks: {result.metrics['miou']:.3f}")
    report = export_run(arguments.run, arguments.run / "model.onnx")
    print(f"{report.path}: {report.bytes / 1e6:.1f} MB, off by at most {report.parity['max_abs']:.1e}")
    print(f"{len(report.modules_kept)} of {report.modules_total} modules: {', '.join(report.modules_kept)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
