"""Captioning of many images into shards: several processes and machines work on one folder, and any of them may die."""

from hfcap.captioning.sharded.folder import Tally
from hfcap.captioning.sharded.launch import caption_shards_with, own_command
from hfcap.captioning.sharded.place import Place, own_place
from hfcap.captioning.sharded.work import ShardedJob, ShardForm, caption_shards

__all__ = [
    "Place",
    "ShardForm",
    "ShardedJob",
    "Tally",
    "caption_shards",
    "caption_shards_with",
    "own_command",
    "own_place",
]
