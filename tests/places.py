"""Where things lie, whatever the folder of the test that asks."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent
SHARED = REPOSITORY.parent / "shared"
"""Real images and checkpoints, where somebody has put them beside the project; tests that need them skip without."""
