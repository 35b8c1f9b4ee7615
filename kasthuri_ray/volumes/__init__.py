"""Volumes: arrays of voxels in BossDB, in chunked stores, in files and in the synthetic cortex, all read in one way.

`open_volume(uri)` in `opening.py` returns a `Volume` for any of them. Read `volume.py` first: it holds the interface.
"""
