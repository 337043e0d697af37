"""The recipe: its tree of options, files and overrides, problems in plain words."""
