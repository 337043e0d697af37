"""Modelling code that is published with a model: these files stand alone on the Hub, next to each other."""
