"""From predictions to figures, pure: accuracy and calibration, greedy soups, the rows of scores."""
