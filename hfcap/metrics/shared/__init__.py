"""What several metrics use: tokens, n-grams, caption files, resampling."""
