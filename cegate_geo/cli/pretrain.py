"""`cegate-geo pretrain`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("pretrain", short_help="Pre-train a small ViT on unlabelled rasters.")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("-o", "--output", "run", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--set", "overrides", multiple=True, metavar="section.key=value", help="Change a setting of CONFIG.")
@click.option("--resume", is_flag=True, help="Go on from the state in the folder.")
@click.option("--device", default="cpu", show_default=True, help="torch device.")
def command(config: Path, run: Path, overrides: tuple[str, ...], *, resume: bool, device: str) -> None:
    """Masked image modelling on the rasters that CONFIG names. Writes backbone.safetensors into the run's folder."""
    from cegate_geo.cli.events import step_bar, watch_cancel
    from cegate_geo.train.config_file import apply_overrides, build, read_toml
    from cegate_geo.train.memory import keep_freed_memory
    from cegate_geo.train.pretrain import PretrainConfig, pretrain

    keep_freed_memory()
    settings = build(PretrainConfig, apply_overrides(read_toml(config), overrides))
    with step_bar(settings.train.steps) as bar, watch_cancel(None) as cancelled:

        def progress(done: int, _: int, figures: dict[str, float]) -> None:
            bar(done, f"loss={figures['loss']:.4f}")

        path = pretrain(settings, run, resume=resume, device=device, progress=progress, cancelled=cancelled)
    click.echo(path)
