"""Class names and colours beside the mask: QGIS' layer style and GDAL's raster attribute table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

from cegate_geo.domain.legend import Legend


def style_qml(legend: Legend) -> str:
    """A QGIS 3 style: paletted values with names and colours."""
    root = ET.Element("qgis", version="3.22.0", styleCategories="Symbology")
    pipe = ET.SubElement(root, "pipe")
    renderer = ET.SubElement(
        pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1", nodataColor=""
    )
    ET.SubElement(renderer, "rasterTransparency")
    palette = ET.SubElement(renderer, "colorPalette")
    for c in legend:
        ET.SubElement(palette, "paletteEntry", value=str(c.id), color=c.hex, alpha="255", label=c.name)
    ET.SubElement(pipe, "brightnesscontrast", brightness="0", contrast="0", gamma="1")
    ET.SubElement(pipe, "huesaturation", saturation="0", grayscaleMode="0")
    ET.SubElement(pipe, "rasterresampler", maxOversampling="2")
    ET.SubElement(root, "blendMode").text = "0"
    return "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n" + _text(root)


RAT_COLUMNS = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8), ("Count", 0, 1))
"""Name, GDAL field type (0 integer, 1 real, 2 string), GDAL usage."""


def crs_beside(raster: Path) -> ET.Element | None:
    """The CRS that GDAL put beside a raster because the file itself can't hold it; None where there is none.

    GeoTIFF has no words for some: rotated poles, say.
    """
    side_file = raster.with_name(raster.name + ".aux.xml")
    return ET.parse(side_file).getroot().find("SRS") if side_file.is_file() else None


def crs_xml(crs: ET.Element) -> str:
    """GDAL's .aux.xml with a CRS, and nothing else."""
    root = ET.Element("PAMDataset")
    root.append(crs)
    return _text(root)


def aux_xml(legend: Legend, counts: Mapping[int, int], *, crs: ET.Element | None = None) -> str:
    """GDAL's .aux.xml: category names and a raster attribute table with the pixel count of each class id.

    And the CRS, where `crs_beside` has one.
    """
    root = ET.Element("PAMDataset")
    if crs is not None:
        root.append(crs)
    band = ET.SubElement(root, "PAMRasterBand", band="1")
    ET.SubElement(band, "Description").text = "class"
    if max(legend.ids) < 256:
        names = {c.id: c.name for c in legend}
        categories = ET.SubElement(band, "CategoryNames")
        for value in range(max(legend.ids) + 1):
            ET.SubElement(categories, "Category").text = names.get(value, "")
    table = ET.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for index, (name, kind, usage) in enumerate(RAT_COLUMNS):
        field = ET.SubElement(table, "FieldDefn", index=str(index))
        ET.SubElement(field, "Name").text = name
        ET.SubElement(field, "Type").text = str(kind)
        ET.SubElement(field, "Usage").text = str(usage)
    for index, c in enumerate(legend):
        row = ET.SubElement(table, "Row", index=str(index))
        for cell in (c.id, c.name, *c.color, counts.get(c.id, 0)):
            ET.SubElement(row, "F").text = str(cell)
    return _text(root)


def _text(root: ET.Element) -> str:
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"
