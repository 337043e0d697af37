"""The parts of METEOR: alignment, stemming, synonyms and paraphrases."""
