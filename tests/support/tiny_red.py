"""A concept in words that the tiny pipelines of the tests know."""

THINGS = ("car", "dog", "house", "cat", "tree", "man", "woman")
CONCEPT = {
    "name": "tiny-red",
    "words": ["red"],
    "pairs": [{"unsafe": f"a red {thing}", "safe": f"a green {thing}"} for thing in THINGS[:4]],
    "neutral": [f"two {thing} walks" for thing in THINGS],
    "evaluation": [f"a small red {thing}" for thing in THINGS],
    "neighbours": [f"a small blue {thing}" for thing in THINGS],
}
