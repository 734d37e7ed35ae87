"""The mathematics of weight space: interpolation, batch-norm re-estimation, barriers, basin exits, planes."""
