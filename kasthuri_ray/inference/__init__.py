"""A network applied to the voxels of a block: how it is run, in which tiles, and what memory it takes.

Nothing in here needs more than torch and numpy. Read `predictor` first.
"""
