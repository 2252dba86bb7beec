"""What can spoil a tile: names and words, for modules that want no image library."""

WORDS = {
    "pen": "on pen",
    "bubble": "under a bubble",
    "blur": "out of focus",
    "fold": "on a fold",
}
"""What is said of a tile with a flag."""

FLAGS = tuple(WORDS)
"""What a tile can be left out for, in the order in which they are looked at: the first above its limit counts."""
