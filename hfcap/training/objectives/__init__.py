"""What training minimises: token cross-entropy, and rewards of sampled captions."""
