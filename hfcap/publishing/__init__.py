"""Model card, staging folder and push to the Hub."""
