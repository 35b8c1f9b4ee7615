"""Neuroglancer for every result: one HTTP server for the viewer and the voxels that it shows; verdicts; screenshots.

Start with `view.py`, which opens what a person names. `viewer_state.py` makes Neuroglancer's state from plain
descriptions, `data_server.py` serves it and the voxels, `screenshot.py` takes pictures.
"""
