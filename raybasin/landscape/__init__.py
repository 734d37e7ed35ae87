"""The mathematics of weight space: interpolation, barriers, when a run leaves its basin, planes. Pure."""
