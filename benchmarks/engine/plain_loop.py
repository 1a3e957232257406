"""A loop over windows as it stands in many notebooks: `plain_loop.py SCENE MODEL OUTPUT TILE OVERLAP`.

Boundless reads of a tile with its margin, one session call, argmax, the margin cut off, written at once.
"""

import sys

import numpy as np
import onnxruntime
import rasterio
from rasterio.windows import Window

scene, model, output = sys.argv[1:4]
tile, overlap = int(sys.argv[4]), int(sys.argv[5])
step, margin = tile - overlap, overlap // 2

session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name

with rasterio.open(scene) as source:
    profile = {**source.profile, "count": 1, "photometric": "MINISBLACK", "compress": "deflate"}
    with rasterio.open(output, "w", **profile) as target:
        for row in range(0, source.height, step):
            for col in range(0, source.width, step):
                window = Window(col - margin, row - margin, tile, tile)
                image = source.read(window=window, boundless=True, fill_value=0)
                scores = session.run(None, {name: image[np.newaxis].astype(np.float32) / 255})[0][0]
                classes = scores.argmax(axis=0).astype(np.uint8)[margin : margin + step, margin : margin + step]
                height, width = min(step, source.height - row), min(step, source.width - col)
                target.write(classes[:height, :width], 1, window=Window(col, row, width, height))
