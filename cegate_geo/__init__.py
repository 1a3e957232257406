"""CEGate-Geo: adapt a vision foundation model to your scenes, and predict georeferenced masks of any size."""

__version__ = "0.1.0"
