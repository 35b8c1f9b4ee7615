"""The files of a segmentation: OME-Zarr with a pyramid, precomputed copy, ledger of the blocks, and files beside them.

Read `ome_zarr` first, which creates and opens the output, then `output_array`, which writes and reads its voxels.
`layout`, `block_grid` and `pyramid` decide how it is divided. `export_file` writes a part of it for other programs.
"""
