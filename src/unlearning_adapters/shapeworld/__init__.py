"""A small world in which everything is known: the model, the data and the judge that prove the machinery."""
