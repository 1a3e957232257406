"""The session and nothing else: `bare_session.py MODEL TILES.npy COUNT` runs COUNT calls of one tile each."""

import sys

import numpy as np
import onnxruntime

model, tiles, count = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3])
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
for n in range(count):
    at = n % len(tiles)
    session.run(None, {name: tiles[at : at + 1]})
