"""The files of a segmentation: OME-Zarr with a pyramid, precomputed copy, ledger of the blocks, and files beside them.

Read `ome_zarr` first, which writes and reads the output. `layout`, `block_grid` and `pyramid` decide how it is divided.
"""
