"""One network is trained: architectures, checkpoints, augmentation, the loop, predictions."""
