"""Pure mathematics: from rows of activations to a direction, one function per method."""
