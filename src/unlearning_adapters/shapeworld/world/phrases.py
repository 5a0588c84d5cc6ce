"""Real language for ShapeWorld: many words and paraphrases of every factor value, for a frozen pretrained text encoder.

`TRAINED` is what the denoiser learns; `UNSEEN` it never reads, so that it knows a value by such a phrase only if the
text encoder puts it near the others. Phrases that begin with "the" or "as" follow the shape.
"""

from .captions import WORDS, Lexicon

TRAINED: Lexicon = {
    "colour": {
        "red": (
            "red", "crimson", "scarlet", "ruby", "cherry", "reddish", "vermilion", "carmine", "burgundy", "maroon",
            "blood red", "rose red", "ruby red", "tomato", "strawberry coloured", "blood coloured",
            "the colour of blood", "the colour of a ripe tomato", "the colour of a fire engine",
            "the colour of a stop sign", "the colour of cherries", "as red as a rose",
        ),
        "green": (
            "green", "emerald", "jade", "lime", "olive", "greenish", "mint", "moss", "forest", "fern",
            "grass green", "pea green", "leaf green", "cucumber coloured", "grass coloured", "lettuce coloured",
            "the colour of grass", "the colour of a leaf", "the colour of a lawn",
            "the colour of spinach", "the colour of a cucumber", "as green as a frog",
        ),
        "blue": (
            "blue", "azure", "cobalt", "navy", "sapphire", "bluish", "indigo", "cerulean", "ultramarine", "denim",
            "sky blue", "royal blue", "navy blue", "ocean coloured", "sky coloured", "blueberry coloured",
            "the colour of the sky", "the colour of the sea", "the colour of denim",
            "the colour of blueberries", "the colour of sapphires", "as blue as the ocean",
        ),
        "yellow": (
            "yellow", "golden", "amber", "lemon", "canary", "yellowish", "mustard", "gold", "saffron", "honey",
            "butter yellow", "lemon yellow", "corn yellow", "banana coloured", "sun coloured", "butter coloured",
            "the colour of a lemon", "the colour of the sun", "the colour of a banana",
            "the colour of honey", "the colour of a sunflower", "as yellow as butter",
        ),
    },
    "shape": {
        "circle": (
            "circle", "disc", "ball", "sphere", "orb", "dot", "globe", "marble", "coin", "round shape", "round object",
            "circular shape", "shape without corners",
        ),
        "square": (
            "square", "box", "block", "cube", "tile", "brick", "crate", "dice", "cardboard box", "square object",
            "square shape", "shape with four corners",
        ),
        "triangle": (
            "triangle", "pyramid", "wedge", "cone", "arrowhead", "tent", "slice of pizza", "triangular object",
            "triangular shape", "three-sided shape", "shape with three corners",
        ),
        "cross": (
            "cross", "plus", "crosspiece", "crucifix", "plus sign", "addition sign", "cross-shaped object",
            "cross shape", "plus-shaped object", "plus symbol",
        ),
    },
    "motion": {
        "left": (
            "left", "to the left", "leftward", "leftwards", "towards the left", "to the left side", "west", "westward",
            "to the left edge",
        ),
        "right": (
            "right", "to the right", "rightward", "rightwards", "towards the right", "to the right side", "east",
            "eastward", "to the right edge",
        ),
        "up": (
            "up", "to the top", "upward", "upwards", "towards the top", "towards the ceiling", "higher", "skyward",
            "to the upper edge",
        ),
        "down": (
            "down", "to the bottom", "downward", "downwards", "towards the bottom", "towards the floor", "lower",
            "earthward", "to the lower edge",
        ),
    },
    "background": WORDS["background"],
}  # fmt: skip

UNSEEN: Lexicon = {
    "colour": {
        "red": ("cardinal", "cherry red", "tomato red", "the colour of raspberries", "the colour of a ruby"),
        "green": ("olive green", "emerald green", "mint green", "the colour of broccoli", "the colour of a meadow"),
        "blue": ("ocean blue", "cobalt blue", "sapphire blue", "the colour of the ocean", "the colour of a summer sky"),
        "yellow": ("daffodil", "golden yellow", "mustard yellow", "the colour of butter", "the colour of gold"),
    },
    "shape": {
        "circle": ("disk", "bubble", "round thing", "circular object"),
        "square": ("cubic shape", "square thing", "wooden box", "square block"),
        "triangle": ("triangular thing", "three-cornered shape", "teepee", "wedge-shaped object"),
        "cross": ("cross-shaped thing", "plus-shaped thing", "cross symbol", "medical cross"),
    },
    "motion": {
        "left": ("toward the left", "to the left-hand side", "to the western side"),
        "right": ("toward the right", "to the right-hand side", "to the eastern side"),
        "up": ("toward the top", "toward the sky", "to the top edge"),
        "down": ("toward the bottom", "toward the ground", "to the bottom edge"),
    },
    "background": {"black": (), "white": (), "grey": ()},
}
