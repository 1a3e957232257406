"""Value types shared by all stages: windows, grids, legends, manifests, confusion matrices. No I/O, no framework."""
