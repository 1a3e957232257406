# SPDX-License-Identifier: GPL-2.0-or-later
"""The labels of an adaptation: their legend, and the files that the engine learns from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeatureSource,
    QgsProcessingFeatureSourceDefinition,
    QgsProcessingFeedback,
    QgsProcessingUtils,
    QgsVectorLayer,
)

from .adapt_job import AREA, LABELS, LabelClass, make_legend
from .label_classes import class_style
from .sources import text_of, write_labels
from .words import tr


@dataclass(frozen=True)
class Labels:
    """Labelled polygons, and what their layer says of the classes."""

    source: QgsProcessingFeatureSource
    field: str
    names: dict[str, str]
    """Value of the field → name."""
    colors: dict[str, str]
    """Value of the field → '#rrggbb'."""

    def legend(self, background: str) -> tuple[tuple[LabelClass, ...], str]:
        """The classes, and the name of the background class (empty: what was not drawn does not count).

        Raises:
            QgsProcessingException: If the field does not exist.
            EngineError: If there are fewer than two classes, or ids that can't be.
        """
        index = self.source.fields().lookupField(self.field)
        if index < 0:
            raise QgsProcessingException(tr("The labels have no field {field!r}.").format(field=self.field))
        values = sorted({text_of(feature.attribute(index)) for feature in self.source.getFeatures()} - {""})
        ground = "" if background.lower() == "ignore" else self.names.get(background, background)
        return make_legend(values, background=ground, names=self.names, colors=self.colors), ground

    def write(self, run: Path, context: QgsProcessingContext, feedback: QgsProcessingFeedback) -> None:
        """Write the labels into the folder of a run.

        Raises:
            QgsProcessingException: If there are none, or they can't be written.
        """
        count = write_labels(self.source, run / LABELS, context, feedback, field=self.field, names=self.names)
        if not count:
            raise QgsProcessingException(
                tr("{name} holds no polygon (or none is selected, or none has a class).").format(name="LABELS")
            )
        feedback.pushInfo(tr("{count} labelled polygons").format(count=count))


def write_area(
    source: QgsProcessingFeatureSource, run: Path, context: QgsProcessingContext, feedback: QgsProcessingFeedback
) -> None:
    """Write the area that is labelled into the folder of a run.

    Raises:
        QgsProcessingException: If there is none, or it can't be written.
    """
    if not write_labels(source, run / AREA, context, feedback, field=""):
        raise QgsProcessingException(tr("{name} holds no polygon, or none is selected.").format(name="AREA"))


def layer_style(value: Any, field: str, context: QgsProcessingContext) -> tuple[dict[str, str], dict[str, str]]:
    """Names and colours of the classes by the layer behind a feature source; see `class_style`."""
    return class_style(label_layer(value, context), field)


def label_layer(value: Any, context: QgsProcessingContext) -> Optional[QgsVectorLayer]:
    """The layer behind a feature source, whose style names the classes; None where there is none."""
    if isinstance(value, QgsProcessingFeatureSourceDefinition):
        value = value.source.staticValue()
    layer = QgsProcessingUtils.mapLayerFromString(value, context) if isinstance(value, str) else value
    return layer if isinstance(layer, QgsVectorLayer) else None
