"""Finding model files: by path, by name, or the one that is shipped."""

from __future__ import annotations

from pathlib import Path

from cegate_geo.errors import ModelError

PACKAGE = Path(__file__).resolve().parents[1]


def model_folders() -> list[Path]:
    """Where shipped models lie: in the installed package, or in the repository beside it."""
    return [folder for folder in (PACKAGE / "_models", PACKAGE.parent / "models") if folder.is_dir()]


def shipped_models() -> dict[str, Path]:
    """Shipped ONNX models by name."""
    return {path.stem: path for folder in reversed(model_folders()) for path in sorted(folder.glob("*.onnx"))}


def default_model_path() -> Path:
    """The shipped demo model.

    Raises:
        ModelError: If none, or more than one, is shipped.
    """
    found = list(shipped_models().values())
    if len(found) == 1:
        return found[0]
    what = "No model is shipped with this installation" if not found else f"{len(found)} models are shipped"
    raise ModelError(f"{what}, so there is no default.", hint="Name one with --model FILE.")


def resolve_model(model: str | Path) -> Path:
    """The file of a model that is given by path or by the name of a shipped one.

    Raises:
        ModelError: If there is no such file.
    """
    path = Path(model)
    if path.is_file():
        return path
    shipped = shipped_models()
    if str(model) in shipped:
        return shipped[str(model)]
    names = f" Shipped models: {', '.join(shipped)}." if shipped else ""
    raise ModelError(
        f"There is no model {model}.", hint=f"Give the path of an ONNX file, an .emd or a STAC MLM item.{names}"
    )
