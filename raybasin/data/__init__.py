"""Where images come from: stored formats, data sets, splits, decoding, shift sets."""
