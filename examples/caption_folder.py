"""Caption all images of a folder and write them as a table.

    python examples/caption_folder.py runs/mine holiday captions.csv

The model is a run directory, a model folder or a model of the Hub.
"""

import argparse
import csv
from pathlib import Path

import hfcap

parser = argparse.ArgumentParser(description="Caption all images of a folder.")
parser.add_argument("model", help="run directory, model folder or Hub id")
parser.add_argument("folder", type=Path)
parser.add_argument("output", type=Path, help="CSV file to write")
parser.add_argument("--num-beams", type=int, default=5)
arguments = parser.parse_args()

images = sorted(
    path for path in arguments.folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
)
captioner = hfcap.load_captioner(arguments.model)
captions = captioner.caption(
    images,
    num_beams=arguments.num_beams,
    num_return_sequences=min(3, arguments.num_beams),
    unreadable="skip",  # a warning names what cannot be read
    progress=True,
)

with arguments.output.open("w", encoding="utf-8", newline="") as handle:
    table = csv.writer(handle)
    table.writerow(["image", "caption", "score", "other captions"])
    for caption in captions:
        others = " | ".join(candidate.text for candidate in caption.candidates[1:])
        table.writerow([caption.image, caption.text, caption.score, others])
print(f"{len(captions)} of {len(images)} images captioned: {arguments.output}")
