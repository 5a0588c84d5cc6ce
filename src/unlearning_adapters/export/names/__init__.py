"""The names of layers: how patterns of them are read, what the models are, and what files and models hold."""
