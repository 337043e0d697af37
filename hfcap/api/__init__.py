"""What `import hfcap` offers beside captioning itself, and what the commands call; heavy imports wait for the call."""
