"""Days of people who use hfcap: what is on their screen, and what is on their disk."""
