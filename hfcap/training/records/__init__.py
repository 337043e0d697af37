"""What a training writes next to its weights: rows of the log, memory, emissions."""
