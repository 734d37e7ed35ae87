"""What the tests of the room `serving` have swept: three digits under names that are hard to write down."""

OWN = {"mean": [0.3, 0.5, 0.6], "std": [0.5, 0.2, 0.9]}
"""How they are normalised."""
CLASSES = ("a | b", "five", "it's")
