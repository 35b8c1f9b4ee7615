"""Counts and scores of predicted voxels, objects and cells, which add up exactly over blocks, batches and ranks.

Everything is computed in numpy and SciPy. Read `voxel_counts` first, then `components`, which finds objects block by
block.
"""
