"""Captioner families: one file each, found by file name."""

import logging

# Merely found by peft, bitsandbytes would warn of an optional part of its own wherever a captioner is loaded.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# So would torchao, of kernels for GPUs that a CPU cannot load, and torch of how torchao registers its types.
logging.getLogger("torchao").setLevel(logging.ERROR)
logging.getLogger("torch.utils._pytree").addFilter(lambda record: "is an Enum subclass" not in str(record.msg))
