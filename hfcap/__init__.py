"""hfcap compares, cheaply fine-tunes and publishes image captioners on the Hugging Face stack."""

__version__ = "0.1.0"
