"""Compare a prediction with an annotation block by block: voxels, objects and cells, and a page with the result.

Read `evaluate.py` first: it runs an evaluation from start to finish. `comparison.py` compares one block and adds up all
of them. `volume_check.py` shows what is understood of an image and its annotation before any work.
"""
