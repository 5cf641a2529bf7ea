"""Training: models, losses, augmentation, metrics, the loop, checkpoints, over any number of data-parallel ranks.

May know torch.distributed; must not know Ray or how shards are laid out in a store.
"""

WEIGHTS_FILE = "weights.safetensors"
"""A net's weights, in a checkpoint and in the ensemble."""
