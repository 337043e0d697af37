"""What `import hfcap` offers besides captioning itself, and what the commands call; heavy imports wait for the call."""
