"""Pages that hfcap writes: one HTML file each, without scripts and without a look into the network; or serves here."""

from hfcap.pages.rendering import data_block, render_page, thumbnail

__all__ = ["data_block", "render_page", "thumbnail"]
