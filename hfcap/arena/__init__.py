"""Captioners against each other: a judge sees an image and two captions, and says which is better."""

from hfcap.arena.people import people_agreement
from hfcap.arena.ranking import Ranking, rank_systems
from hfcap.arena.showing import ranking_table, write_ranking

__all__ = ["Ranking", "people_agreement", "rank_systems", "ranking_table", "write_ranking"]
