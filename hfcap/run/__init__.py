"""The stages of a run, and what may change while it goes on."""
