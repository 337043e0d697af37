"""Find images by a text: `find` searches, `write_hits` and `hit_table` show what was found."""

from hfcap.search.collection import load_collection
from hfcap.search.finding import Hit, find
from hfcap.search.output import OUTPUT_SUFFIXES, hit_table, write_hits

__all__ = ["OUTPUT_SUFFIXES", "Hit", "find", "hit_table", "load_collection", "write_hits"]
