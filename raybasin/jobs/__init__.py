"""What a worker does, and in which order: training, measuring, scoring, retention, and a sweep in one process."""
