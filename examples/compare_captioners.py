"""Caption the same images with several captioners, and see which differences are more than chance.

    python examples/compare_captioners.py references.json images runs/a runs/b Salesforce/blip-image-captioning-base

references.json maps the file name of each image to its human captions: {"cat.jpg": ["a cat asleep", "a sleeping cat"]}
"""

import argparse
import json
from pathlib import Path

import hfcap

parser = argparse.ArgumentParser(description="Compare captioners on the same images.")
parser.add_argument("references", type=Path, help="JSON file: file name -> human captions")
parser.add_argument("images", type=Path, help="folder of the images")
parser.add_argument("models", nargs="+", help="run directories, model folders or Hub ids")
parser.add_argument("--output", type=Path, help="folder for a page with plots")
arguments = parser.parse_args()

references = json.loads(arguments.references.read_text(encoding="utf-8"))
files = [arguments.images / name for name in references]
captions = {}
for model in arguments.models:
    captioner = hfcap.load_captioner(model)
    name = Path(model).name if Path(model).is_dir() else model
    captions[name] = dict(zip(references, captioner.caption(files, num_beams=3, progress=True), strict=True))

comparison = hfcap.compare(
    captions, references=references, metrics=["bleu", "rouge_l", "cider"], output=arguments.output
)
print(comparison)
