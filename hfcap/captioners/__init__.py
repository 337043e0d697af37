"""Captioner families: one file each, found by file name."""

import logging

# Merely found by peft, bitsandbytes would warn of an optional part of its own wherever a captioner is loaded.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
