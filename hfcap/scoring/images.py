"""Images for metrics that look at them: safely decoded, and encoded once (feature store)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from hfcap.data.images import FileImage, decode_image
from hfcap.metrics.shared.images import DecodedImages, Images, check_present, image_files
from hfcap.schema import CaptionedImage


@dataclass(frozen=True, slots=True)
class StoredImages:
    """Images whose embeddings are kept in the feature store: scoring again encodes nothing.

    Attributes:
        records: image id -> record.
        folder: of the feature store; None = `features` in the cache folder.
        num_workers: processes that decode images.
    """

    records: Mapping[str, CaptionedImage]
    folder: Path | None = None
    num_workers: int = 0

    def embeddings(
        self, name: str, model: Any, image_processor: Any, image_ids: Sequence[str], batch_size: int
    ) -> NDArray[np.float32]:
        """See hfcap.metrics.shared.images.Images."""
        from hfcap.store.features import FeatureStore, embedding_encoder

        check_present(image_ids, self.records)
        store = FeatureStore(embedding_encoder(name, model, image_processor), self.folder)
        records = [self.records[image_id] for image_id in image_ids]
        rows = store.inputs(records, batch_size, self.num_workers)
        return np.stack([rows[number].float().numpy() for number in range(len(records))])

    def decoded(self, image_id: str) -> Image:
        """Return one image as RGB.

        Raises:
            UserError: it is missing or cannot be read.
        """
        check_present([image_id], self.records)
        return decode_image(self.records[image_id].image)


def images_of_records(
    records: Iterable[CaptionedImage], folder: Path | None = None, *, stored: bool = True, num_workers: int = 0
) -> Images:
    """Return the images of records; with `stored` their embeddings are kept in the feature store."""
    by_id = {record.image_id: record for record in records}
    if stored:
        return StoredImages(by_id, folder, num_workers)
    return DecodedImages({image_id: record.image for image_id, record in by_id.items()}, decode_image)


def images_of_folder(folder: Path, image_ids: Sequence[str], file_names: Mapping[str, str]) -> Images:
    """Return the images of a folder (see `image_files`); their embeddings are kept in the feature store.

    Raises:
        UserError: there is no such folder, or an image has no image in it.
    """
    files = image_files(folder, image_ids, file_names)
    return images_of_records(
        CaptionedImage(image_id, path.relative_to(folder).as_posix(), (), FileImage(path))
        for image_id, path in files.items()
    )
