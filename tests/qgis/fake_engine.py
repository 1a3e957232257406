"""Stands in for the engine: keeps its contract, or breaks it as FAKE_ENGINE_MODE says.

In the modes that give a result it really makes one, with GDAL: class 1 where band 1 is above 127, nodata where it is 0.
FAKE_ENGINE_LOG names a file that takes what it was given: arguments, environment, how it was cancelled.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

MODE = os.environ.get("FAKE_ENGINE_MODE", "ok")
CLASSES = [{"id": 0, "name": "other", "color": "#e4e4de"}, {"id": 1, "name": "building", "color": "#d64541"}]
cancelled = threading.Event()


def log(**what: object) -> None:
    if "FAKE_ENGINE_LOG" in os.environ:
        with Path(os.environ["FAKE_ENGINE_LOG"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")


def say(event: str, **what: object) -> None:
    print(json.dumps({"event": event, **what}), flush=True)


def options(words: list[str]) -> dict[str, str]:
    found = {"SCENE": words[1]}
    words = [part for word in words[2:] for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while words:
        name = words.pop(0)
        found[name] = words.pop(0) if words and not words[0].startswith("--") else ""
    return found


def watch_stdin() -> None:
    line = sys.stdin.readline()
    log(stdin=line)
    cancelled.set()


def stop_if_cancelled() -> None:
    if cancelled.is_set():
        say("error", code="cancelled", message="Cancelled.", hint="")
        sys.stdout.flush()
        os._exit(130)


def write_mask(scene: str, output: str) -> list[dict[str, object]]:
    import numpy as np
    from osgeo import gdal

    gdal.UseExceptions()
    source = gdal.Open(scene)
    values = source.GetRasterBand(1).ReadAsArray()
    mask = np.where(values == 0, 255, values > 127).astype("uint8")
    made = gdal.GetDriverByName("GTiff").Create(output, source.RasterXSize, source.RasterYSize, 1)
    made.SetGeoTransform(source.GetGeoTransform())
    made.SetProjection(source.GetProjection())
    band = made.GetRasterBand(1)
    band.SetNoDataValue(255)
    band.WriteArray(mask)
    band = made = None
    return [{**c, "pixels": int((mask == c["id"]).sum()), "area_m2": 1.0} for c in CLASSES]


def write_polygons(mask: str, output: str) -> None:
    from osgeo import gdal, ogr

    source = gdal.Open(mask)
    made = ogr.GetDriverByName("GPKG").CreateDataSource(output)
    layer = made.CreateLayer("polygons", source.GetSpatialRef(), ogr.wkbPolygon)
    layer.CreateField(ogr.FieldDefn("class", ogr.OFTInteger))
    gdal.Polygonize(source.GetRasterBand(1), source.GetRasterBand(1).GetMaskBand(), layer, 0)


def leave_remains(output: str) -> None:
    """A hidden job folder, as the engine has one while it works."""
    target = Path(output)
    folder = target.parent / f".{target.name}.host-{os.getpid()}.part"
    folder.mkdir()
    (folder / "half").write_text("half a mask")


def misbehave(given: dict[str, str]) -> None:
    """The modes that break the contract."""
    if MODE in ("crash", "deaf") and "--output" in given:
        leave_remains(given["--output"])
    if MODE == "crash":
        say("progress", fraction=0.5, done=1, total=2, eta_s=1.0)
        sys.stderr.write("about to crash\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGSEGV)
    elif MODE == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        say("progress", fraction=0.25, done=1, total=4, eta_s=99.0)
        while True:
            time.sleep(0.05)
    elif MODE == "garbage":
        sys.stdout.buffer.write(b'Loading model ...\n\xff\xfe\x00\n[1, 2]\n{"event": "progress"}\n{"no": 1}\n')
        say("news", what="an event of a later version")
    elif MODE == "noisy":
        sys.stderr.write(("n" * 99 + "\n") * 50_000 + "the last words\n")
        if os.environ.get("FAKE_ENGINE_THEN") == "fail":
            sys.exit(1)
    elif MODE == "error":
        say("error", code="model", message="The model has 4 bands, the scene 3.", hint="Choose with --bands.")
        sys.exit(3)
    elif MODE == "traceback":
        raise RuntimeError("libsomething.so: cannot open shared object file")
    elif MODE == "empty":
        sys.exit(0)
    elif MODE == "outside":
        sys.exit(130)


CARD = {
    "manifest": {
        "name": "roofs <1>", "description": "Roofs & yards.", "legend": CLASSES, "bands": ["red", "green", "blue"],
        "dtype": "uint8", "gsd_m": 0.5, "gsd_range_m": [0.4, 0.7], "tile_size": 64, "halo": 8, "parameters": 1234,
        "licence": "CC0", "attribution": "Somebody", "provenance": {"validation": {"miou": 0.75}},
    },
    "contract": {"all": "manifest"},
    "file": {"path": "/models/roofs.onnx", "bytes": 10},
}  # fmt: skip
FIGURES = {
    "miou": 0.5, "accuracy": 0.75, "confusion": [[3, 1], [1, 3]],
    "per_class": [
        {"id": 0, "name": "other", "iou": 0.6, "f1": 0.75, "precision": 0.75, "recall": 0.75, "pixels": 4},
        {"id": 1, "name": "a <b>", "iou": None, "f1": None, "precision": None, "recall": None, "pixels": 4},
    ],
}  # fmt: skip


VERDICTS = {
    "ok": True, "scene": "s.tif", "model": "roofs <1>", "provider": "cpu", "versions": {"onnxruntime": "1.0"},
    "verdicts": [
        {"name": "bands", "state": "ok", "number": None, "limit": None, "message": "They fit.", "hint": "Nothing."},
        {"name": "seams", "state": "warning", "number": 0.01, "limit": 0.02, "message": "a < b", "hint": "More halo."},
    ],
}  # fmt: skip


def check() -> None:
    """`check --json`: one object, also where a test fails."""
    if MODE == "traceback":
        raise RuntimeError("libsomething.so: cannot open shared object file")
    told = json.loads(json.dumps(VERDICTS))
    if MODE == "unfit":
        told["ok"], told["verdicts"][0]["state"] = False, "fail"
    print(json.dumps(told))
    sys.stdout.flush()
    sys.exit(0 if told["ok"] else 1)


def info() -> None:
    """`info --json`: one object, no events."""
    if MODE == "error":
        sys.stderr.write("cegate-geo: No model of this name. Check the path.\n")
        sys.exit(2)
    if MODE == "garbage":
        print("This is no engine.")
        return
    if MODE == "never":
        time.sleep(60)
    print("a stray line\n" + json.dumps(CARD))


def adapt(given: dict[str, str]) -> None:
    """Twenty steps; what is cancelled after the first is saved."""
    run = Path(given["--output"])
    if MODE == "untrained":
        hint = 'Install it: pip install "cegate-geo[train]".'
        say("error", code="runtime-missing", message="This command needs the package torch.", hint=hint)
        sys.exit(3)
    if "--resume" not in given:
        (run / "config.json").write_text("{}")
    total = 200 if MODE == "long" else 20
    for step in range(1, total + 1):
        if cancelled.is_set():
            time.sleep(1.2)  # the rest of a step
            (run / "state").mkdir(exist_ok=True)
            (run / "state" / "state.json").write_text("{}")
            stop_if_cancelled()
        more = {"loss": 1 / step, "miou": None if step < 10 else 0.5}
        say("progress", fraction=step / total, done=step, total=total, eta_s=1.0, **more)
        time.sleep(0.05 if MODE == "long" else 0)
    for name in ("model.onnx", "report.html"):
        (run / name).write_text("made")
    told = {"model": str(run / "model.onnx"), "report": str(run / "report.html"), "run": str(run)}
    say("result", command="adapt", miou=0.5, best_step=20, seconds=1.0, **told)


def main() -> None:
    log(argv=sys.argv[1:], environ=dict(os.environ), pid=os.getpid())
    if sys.argv[1] == "info":
        return info()
    if sys.argv[1] == "check" and MODE != "error":
        return check()
    if MODE == "slow":
        time.sleep(1.5)
    if MODE != "mute":
        say("hello", protocol=2 if MODE == "protocol" else 1, version="9.8.7", command="predict")
    if MODE == "protocol":
        time.sleep(60)
    if MODE == "never":
        time.sleep(60)
    given = options(sys.argv[1:])
    threading.Thread(target=watch_stdin, daemon=True).start()
    misbehave(given)
    if sys.argv[1] == "adapt":
        return adapt(given)
    if sys.argv[1] == "evaluate":
        say("result", command="evaluate", **FIGURES)
        return None
    if "--dry-run" in given:
        told = {"outputs": [given["--output"]], "tiles": 1234, "memory_mb": 300, "seconds": 65.0, "provider": "cpu"}
        say("result", dry_run=True, **told)
        return None
    total = {"long": 400, "steady": 20}.get(MODE, 4)
    for done in range(total + 1):
        stop_if_cancelled()
        say("progress", fraction=done / total, done=done, total=total, eta_s=None if done == 0 else 1.0)
        time.sleep(0.05 if total > 4 else 0)
    say("warning", code="gsd", message="The scene has no CRS.")
    classes: list[dict[str, object]] = [{**c, "pixels": 0} for c in CLASSES]
    if Path(given["SCENE"]).is_file() and "--output" in given:
        classes = write_mask(given["SCENE"], given["--output"])
        if "--vector" in given:
            write_polygons(given["--output"], given["--vector"])
        for name in ("--confidence", "--probabilities"):
            if name in given:
                Path(given[name]).write_bytes(Path(given["--output"]).read_bytes())
    run = {"tiles": 4, "skipped_tiles": 1, "seconds": 0.5, "provider": "cpu"}
    say("result", output=given.get("--output", ""), classes=classes, **run)
    return None


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
