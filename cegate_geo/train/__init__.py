"""From labelled rasters to a pruned, exported model. `loop` is the only module that knows all stages of `adapt`."""
