"""Pictures of the QGIS plugin for the docs: `/usr/bin/python3 docs/make_qgis_pictures.py` (needs QGIS, no screen).

Saves the dialog of "Segment raster" to docs/images/qgis-segment-raster.png.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
WIDTH, HEIGHT = 1120, 830


def prepare(home: Path) -> None:
    """No screen, and no profile of this machine's user: nothing personal gets into a picture."""
    os.environ.update(HOME=str(home), XDG_RUNTIME_DIR=str(home), QT_QPA_PLATFORM="offscreen", LC_ALL="C.UTF-8")
    os.environ["QGIS_CUSTOM_CONFIG_PATH"] = str(home)
    sys.path[:0] = ["/usr/share/qgis/python/plugins", str(HERE.parent / "qgis_plugin")]


def make_scene(path: Path) -> None:
    """A small raster, so that the dialog has a layer to show."""
    from osgeo import gdal, osr

    gdal.UseExceptions()
    raster = gdal.GetDriverByName("GTiff").Create(str(path), 64, 64, 3)
    crs = osr.SpatialReference()
    crs.ImportFromEPSG(32645)
    raster.SetProjection(crs.ExportToWkt())
    raster.SetGeoTransform((300000, 0.15, 0, 3000000, 0, -0.15))


def picture_of_dialog(scene: Path, target: Path) -> None:
    """Open the dialog as the toolbox does and save what is seen."""
    from cegate_geo_qgis import classFactory
    from processing.core.Processing import Processing
    from processing.gui.AlgorithmDialog import AlgorithmDialog
    from qgis.core import QgsApplication, QgsProject, QgsRasterLayer

    Processing.initialize()
    plugin = classFactory(None)
    plugin.initProcessing()
    QgsProject.instance().addMapLayer(QgsRasterLayer(str(scene), "Drone scene", "gdal"))
    dialog = AlgorithmDialog(QgsApplication.processingRegistry().createAlgorithmById("cegate_geo:segment_raster"))
    dialog.resize(WIDTH, HEIGHT)
    dialog.show()
    for _ in range(20):
        QgsApplication.processEvents()
    target.parent.mkdir(parents=True, exist_ok=True)
    if not dialog.grab().save(str(target)):
        sys.exit(f"{target} could not be written")
    dialog.close()
    plugin.unload()


def main() -> None:
    """Make all pictures."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        from qgis.core import QgsApplication

        application = QgsApplication([], True)
        application.initQgis()
        scene = Path(folder) / "drone_scene.tif"
        make_scene(scene)
        target = HERE / "images" / "qgis-segment-raster.png"
        picture_of_dialog(scene, target)
    sys.stdout.write(f"{target}\n")
    sys.stdout.flush()
    os._exit(0)  # QGIS without a window is not always able to end


if __name__ == "__main__":
    main()
