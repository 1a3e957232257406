"""The engine: a raster goes in at `reader`, leaves at `writer`; `pipeline` is the only module that knows all stages."""
