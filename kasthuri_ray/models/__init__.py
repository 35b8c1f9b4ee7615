"""Networks and what a training or a segmentation needs of them: U-Nets, losses, checkpoints and the receptive field.

Nothing in here needs more than torch. Read `unet` first: `build_network` makes a network from a network file.
"""
