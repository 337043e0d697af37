"""What is kept by the hash of an image: encoder features and decoded pixels."""
