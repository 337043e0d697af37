"""Pictures for CLIPScore: safely decoded, and encoded once (feature store)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcap.data.images import FileImage, decode_image
from hfcap.metrics.shared.images import DecodedPictures, Pictures, check_present, picture_files
from hfcap.schema import CaptionedImage


@dataclass(frozen=True, slots=True)
class StoredPictures:
    """Pictures whose embeddings are kept in the feature store: scoring again encodes nothing.

    Attributes:
        records: image id -> record.
        folder: of the feature store; None = `features` in the cache folder.
        num_workers: processes that decode pictures.
    """

    records: Mapping[str, CaptionedImage]
    folder: Path | None = None
    num_workers: int = 0

    def embeddings(
        self, name: str, model: Any, image_processor: Any, image_ids: Sequence[str], batch_size: int
    ) -> NDArray[np.float32]:
        """See hfcap.metrics.shared.images.Pictures."""
        from hfcap.store.features import FeatureStore, embedding_encoder

        check_present(image_ids, self.records)
        store = FeatureStore(embedding_encoder(name, model, image_processor), self.folder)
        records = [self.records[image_id] for image_id in image_ids]
        rows = store.inputs(records, batch_size, self.num_workers)
        return np.stack([rows[number].float().numpy() for number in range(len(records))])


def pictures_of_records(
    records: Iterable[CaptionedImage], folder: Path | None = None, *, stored: bool = True, num_workers: int = 0
) -> Pictures:
    """Return the pictures of records; with `stored` their embeddings are kept in the feature store."""
    by_id = {record.image_id: record for record in records}
    if stored:
        return StoredPictures(by_id, folder, num_workers)
    return DecodedPictures({image_id: record.image for image_id, record in by_id.items()}, decode_image)


def pictures_of_folder(folder: Path, image_ids: Sequence[str], file_names: Mapping[str, str]) -> Pictures:
    """Return the pictures of a folder (see `picture_files`); their embeddings are kept in the feature store.

    Raises:
        UserError: there is no such folder, or an image has no picture in it.
    """
    files = picture_files(folder, image_ids, file_names)
    return pictures_of_records(
        CaptionedImage(image_id, path.relative_to(folder).as_posix(), (), FileImage(path))
        for image_id, path in files.items()
    )
