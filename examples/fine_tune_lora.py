"""Fine-tune a captioner with LoRA on images of your own.

    python examples/fine_tune_lora.py my_images --name my_run

The folder holds a metadata.jsonl next to the images, one line an image:

    {"file_name": "cat.jpg", "captions": ["a cat asleep on a red sofa", "a sleeping cat"]}

Everything that the recipe says can be changed by a keyword; a stopped training goes on when it is started again.
"""

import argparse

import hfcap

parser = argparse.ArgumentParser(description="Fine-tune BLIP with LoRA on a folder of images with captions.")
parser.add_argument("images", help="folder with metadata.jsonl")
parser.add_argument("--name", default="my_images", help="name of the run")
parser.add_argument("--output-dir", default="runs", help="folder for the run directory")
parser.add_argument("--base", help="BLIP to start from: Hub id or folder; default: the recipe's")
parser.add_argument("--epochs", type=float, default=10)
arguments = parser.parse_args()

base = {} if arguments.base is None else {"pretrained": arguments.base, "revision": None}
run = hfcap.train(
    "blip/folder_lora",
    until="score",  # train, caption the images kept for the test, and score the captions
    progress=True,
    name=arguments.name,
    output_dir=arguments.output_dir,
    data={"root": arguments.images},
    model=base,
    lora={"r": 8, "lora_alpha": 16},
    train={"num_train_epochs": arguments.epochs},
)

summary = run.summary
print(f"{summary['trainable_parameters']:,} of {summary['parameters']:,} parameters trained: {run.folder}")
for name, value in run.scores().metrics.items():
    print(f"{name:10} {'undefined' if value is None else f'{100 * value:.1f}'}")
