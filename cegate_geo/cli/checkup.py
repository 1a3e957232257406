"""What `doctor` looks at. Each check gives findings and never raises: a broken installation is what it is for."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from cegate_geo import __version__
from cegate_geo.errors import CegateError


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report."""

    name: str
    state: Literal["ok", "note", "broken"]
    value: str
    hint: str = ""


FOREIGN_VARIABLES = (
    "PROJ_LIB",
    "PROJ_DATA",
    "GDAL_DATA",
    "GDAL_DRIVER_PATH",
    "PYTHONPATH",
    "PYTHONHOME",
    "LD_LIBRARY_PATH",
)
"""Set by QGIS, conda and others for their own libraries; ours may then read the wrong data."""


def examine() -> list[Finding]:
    """Look at everything that `predict` needs, and at what training needs."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python, _packages, _runtime, _projections, _variables, _machine, _model, _workers, _training
    )  # fmt: skip
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except Exception as error:
            name = check.__name__.strip("_")
            findings.append(Finding(name=name, state="broken", value=f"{type(error).__name__}: {error}"))
    return findings


def _python() -> Iterator[Finding]:
    yield Finding(name="cegate-geo", state="ok", value=__version__)
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    hint = "" if good else "Use Python 3.11 or newer."
    yield Finding(name="python", state="ok" if good else "broken", value=f"{version} at {sys.executable}", hint=hint)
    yield Finding(name="platform", state="ok", value=platform.platform())


def _packages() -> Iterator[Finding]:
    for package in ("numpy", "rasterio", "pyproj", "shapely", "pyogrio", "click", "tqdm"):
        try:
            importlib.import_module(package)
            yield Finding(name=package, state="ok", value=metadata.version(package))
        except (ImportError, metadata.PackageNotFoundError) as error:
            yield Finding(name=package, state="broken", value=str(error), hint=f"pip install {package}")
    import rasterio

    yield Finding(name="GDAL", state="ok", value=str(rasterio.__gdal_version__))


def _runtime() -> Iterator[Finding]:
    installed = [p for p in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml") if _version(p)]
    if len(installed) > 1:
        yield Finding(
            name="onnxruntime",
            state="broken",
            value=f"{' and '.join(installed)} are both installed, and overwrite each other's files",
            hint=f"pip uninstall {' '.join(installed)}; then install one of them.",
        )
        return
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        hint = 'pip install "cegate-geo[cpu]", or "cegate-geo[gpu]" for CUDA'
        yield Finding(name="onnxruntime", state="broken", value=str(error), hint=hint)
        return
    yield Finding(
        name="onnxruntime", state="ok", value=f"{onnxruntime.__version__} ({installed[0] if installed else '?'})"
    )
    providers = onnxruntime.get_available_providers()
    has_gpu = "CUDAExecutionProvider" in providers
    yield Finding(
        name="providers",
        state="ok",
        value=", ".join(providers),
        hint="" if has_gpu or not Path("/dev/nvidia0").exists() else 'A GPU is here: pip install "cegate-geo[gpu]".',
    )


def _projections() -> Iterator[Finding]:
    import rasterio.warp
    from rasterio.crs import CRS

    hint = "Unset PROJ_LIB and PROJ_DATA, or reinstall rasterio and pyproj."
    for code, crs in (("EPSG:3857", CRS.from_epsg(3857)), ("EPSG:32645", CRS.from_epsg(32645))):
        found = crs.to_authority()
        if found is None or ":".join(found) != code:
            value = f"{code} is not recognised (found {found})"
            yield Finding(name="PROJ (rasterio)", state="broken", value=value, hint=hint)
            return
    xs, _ = rasterio.warp.transform(CRS.from_epsg(4326), CRS.from_epsg(3857), [180.0], [0.0])
    good = abs(xs[0] - 20037508.342789244) < 0.01
    yield Finding(
        name="PROJ (rasterio)",
        state="ok" if good else "broken",
        value="projects as it should" if good else f"180° east lands at {xs[0]}",
        hint="" if good else hint,
    )
    import pyproj

    x, _ = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(180, 0)
    good = abs(x - 20037508.342789244) < 0.01
    value = f"{pyproj.proj_version_str}, data in {pyproj.datadir.get_data_dir()}"
    yield Finding(name="PROJ (pyproj)", state="ok" if good else "broken", value=value, hint="" if good else hint)


def _variables() -> Iterator[Finding]:
    for name in FOREIGN_VARIABLES:
        if name in os.environ:
            hint = "If something above is broken, unset it: it belongs to another program."
            yield Finding(name=name, state="note", value=os.environ[name], hint=hint)


def _machine() -> Iterator[Finding]:
    from cegate_geo.infer.providers import usable_cores

    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GB of memory"
    yield Finding(name="machine", state="ok", value=f"{usable_cores()} usable cores{memory}")


def _model() -> Iterator[Finding]:
    import numpy as np

    from cegate_geo.infer.load import load_predictor
    from cegate_geo.infer.models import default_model_path
    from cegate_geo.infer.predictor import SessionOptions

    try:
        path = default_model_path()
    except CegateError as error:
        yield Finding(name="shipped model", state="note", value=error.message, hint=error.hint)
        return
    try:
        predictor = load_predictor(path, SessionOptions(provider="cpu"))
        height, width = (side or predictor.manifest.tile_size for side in predictor.sides)
        predictor.run(np.zeros((1, len(predictor.manifest.bands), height, width), predictor.input_type))
    except CegateError as error:
        yield Finding(name="shipped model", state="broken", value=error.message, hint=error.hint)
        return
    yield Finding(name="shipped model", state="ok", value=f"{path.stem} loads and runs")


def _workers() -> Iterator[Finding]:
    from cegate_geo.infer.cluster import INSTALL, distributed_version

    version = distributed_version()
    if version is None:
        yield Finding(name="distributed", state="note", value="not installed", hint=f"Only --dask needs it: {INSTALL}")
    else:
        yield Finding(name="distributed", state="ok", value=version)


def _training() -> Iterator[Finding]:
    needed = ("torch", "torchvision", "timm", "onnx", "onnxscript", "safetensors", "pillow")
    missing = [package for package in needed if not _version(package)]
    if missing:
        hint = 'Only adapt, export and pretrain need it: pip install "cegate-geo[train]"'
        yield Finding(name="training", state="note", value=f"{', '.join(missing)} not installed", hint=hint)
    else:
        yield Finding(name="training", state="ok", value=f"torch {_version('torch')}, timm {_version('timm')}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
