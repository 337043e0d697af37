"""Vision-language models of AutoModelForImageTextToText: what each kind needs beyond the common path."""
