"""Computing once per image what a store keeps: what is missing, room, shares of several processes, whole shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hfcap.data.loading import PixelInputs, image_loader, stacked
from hfcap.progress import error_console, progress_bar
from hfcap.schema import Images
from hfcap.store.image_hashes import image_hashes
from hfcap.store.row_store import Place, RowStore, ShardWriter, n_bytes
from hfcap.text import gigabytes


class OneProcess:
    """Stands for an Accelerator where there is none: one process."""

    process_index = 0
    num_processes = 1
    is_main_process = True

    def wait_for_everyone(self) -> None:
        """Nobody else is there."""


@dataclass(frozen=True, slots=True)
class StoreMessages:
    """How messages speak of a store: what is done, what it is, and what to do where the disk is too small."""

    doing: str
    store: str
    remedy: str


@dataclass(frozen=True, slots=True)
class StoreFiller:
    """Fills a store with the rows of images.

    Attributes:
        inputs: the images. rows_of: stacked inputs -> rows (B, ...) on the CPU, as they are stored.
        maker: what makes the rows, for `hfcap features list`.
        accelerator: the processes that share the work.
        device: where `rows_of` brings the images; None = nowhere.
    """

    rows: RowStore
    inputs: PixelInputs
    rows_of: Callable[[Images], Images]
    maker: str
    wording: StoreMessages
    accelerator: Any
    device: torch.device | None = None

    def places(self, batch_size: int, num_workers: int) -> list[Place]:
        """Return where the row of each image is, computing those the store lacks.

        Raises:
            WorkError: the disk has too little room, or a shard is damaged. UnreadableImageError: an image is.
        """
        hashes = image_hashes(self.inputs.records)
        places = self.rows.places()
        # Shares are cut from all images: what is missing may look otherwise to each process, as another run may be
        # adding to the store.
        images = _first_of_each(hashes)
        missing = [number for number in images if hashes[number] not in places]
        if missing:
            self._announce(missing)
            share = images[self.accelerator.process_index :: self.accelerator.num_processes]
            mine = [number for number in share if hashes[number] not in places]
            self._compute(hashes, mine, batch_size, num_workers)
        self.accelerator.wait_for_everyone()
        if missing:
            places = self.rows.places()
        if self.accelerator.is_main_process:
            self.rows.mark_used()
        return [places[value] for value in hashes]

    def _announce(self, missing: Sequence[int]) -> None:
        row = self.rows_of(stacked([self.inputs[missing[0]]]))[0]
        size = len(missing) * n_bytes(row)
        free = self.rows.require_room(size, self.wording.store, self.wording.remedy)
        if self.accelerator.is_main_process:
            error_console.print(
                f"{self.wording.doing} {len(missing):,} images once, {gigabytes(size)} in {self.rows.folder} "
                f"({gigabytes(free)} free)",
                markup=False,
            )
            self.rows.describe(self.maker, row)

    def _compute(self, hashes: Sequence[str], chosen: Sequence[int], batch_size: int, num_workers: int) -> None:
        batches = [chosen[first : first + batch_size] for first in range(0, len(chosen), batch_size)]
        writer = ShardWriter(self.rows)
        with progress_bar() as progress:
            task = progress.add_task(self.wording.doing, total=len(chosen), visible=self.accelerator.is_main_process)
            loader = image_loader(self.inputs, batches, num_workers, self.device)
            for batch, images in zip(batches, loader, strict=True):
                writer.add(self.rows_of(images), [hashes[number] for number in batch])
                progress.advance(task, len(batch))
        writer.close()


def _first_of_each(hashes: Sequence[str]) -> list[int]:
    """Numbers of the first image with each hash."""
    first: dict[str, int] = {}
    for number, value in enumerate(hashes):
        first.setdefault(value, number)
    return list(first.values())
