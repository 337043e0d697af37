"""The model card: facts of a run, their wording, and code that uses the model."""
