"""The example commands that each `--help` ends with."""

from __future__ import annotations

EXAMPLES = {
    "run": ("hfcap run quickstart", "hfcap run recipes/blip/folder_lora.yaml data.root=images train.max_steps=500"),
    "doctor": ("hfcap doctor recipes/blip/folder_lora.yaml data.root=images", "hfcap doctor quickstart --steps 0"),
    "train": ("hfcap train recipes/mine.yaml", "hfcap train runs/mine --force"),
    "status": ("hfcap status runs/mine",),
    "plot": ("hfcap plot runs/mine runs/other -o curves.html",),
    "watch": ("hfcap watch runs/mine",),
    "card": ("hfcap card runs/mine", "hfcap card runs/mine --check"),
    "list": ("hfcap list recipes", "hfcap list metrics"),
    "recipe-schema": ("hfcap recipe-schema > recipe.schema.json",),
    "caption": (
        "hfcap caption runs/mine cat.jpg holiday/ -o captions.csv",
        "hfcap caption Salesforce/blip-image-captioning-base cat.jpg --num-beams 5",
        "hfcap caption runs/mine photos --sidecar txt --prefix 'sks dog'",
        "hfcap caption runs/mine cat.jpg --sample --top-p 0.9 --num-return-sequences 5",
        "hfcap caption runs/mine 'shards/*.tar' -o captions --to-shards parquet --num-processes 4",
    ),
    "review": ("hfcap review photos",),
    "explain": ("hfcap explain runs/mine cat.jpg -o maps.png",),
    "demo": ("hfcap demo runs/mine", "hfcap demo runs/a runs/b --port 8000"),
    "ensemble": ("hfcap ensemble a.jsonl b.jsonl c.jsonl -o best.jsonl",),
    "search": (
        "hfcap search 'two dogs on a beach' images -o hits.html",
        "hfcap search 'a red bus' runs/mine --model openai/clip-vit-base-patch32 -k 20",
    ),
    "score": (
        "hfcap score captions.json references.json -o scores.json",
        "hfcap score captions.json captions_val2014.json --metrics cider,meteor",
        "hfcap score runs/mine",
    ),
    "compare": (
        "hfcap compare runs/a runs/b -o comparison --show-images",
        "hfcap compare a.jsonl b.jsonl --references references.json",
        "hfcap compare scores/a.de.json scores/a.en.json scores/b.de.json scores/b.en.json -o languages",
    ),
    "judge-metrics": (
        "hfcap judge-metrics Flickr8k_text/CrowdFlowerAnnotations.txt --metrics bleu,rouge_l,cider -o agreement",
        "hfcap judge-metrics foilv1.0_test_2017.json --references captions_val2014.json",
    ),
    "probe-objects": (
        "hfcap probe-objects runs/mine instances_val2014.json val2014 -o probe",
        "hfcap probe-objects http://127.0.0.1:8000/v1 objects.json photos --vocabulary kitchen.txt --n-images 100",
    ),
    "judge": (
        "hfcap judge a.jsonl b.jsonl c.jsonl --images val2014 --model llava-hf/llava-1.5-13b-hf -o judged",
        "hfcap judge --people preferences.csv --images photos --base-url http://127.0.0.1:8000/v1 -o worth",
    ),
    "publish": ("hfcap publish runs/mine --repo-id you/name --dry-run", "hfcap publish runs/mine --repo-id you/name"),
    "verify": ("hfcap verify you/name",),
    "merge": ("hfcap merge runs/mine_lora -o merged",),
    "export": ("hfcap export runs/mine --to onnx -o export --images photos",),
    "publish-space": ("hfcap publish-space you/name --repo-id you/demo --dry-run",),
    "publish-metric": ("hfcap publish-metric cider --repo-id you/cider --dry-run",),
    "data coco": ("hfcap data coco --root coco",),
    "data inspect": (
        "hfcap data inspect images",
        "hfcap data inspect export.csv --image-column photo --caption-columns alt_text",
    ),
    "features list": ("hfcap features list",),
    "features prune": ("hfcap features prune --older-than 30",),
}
"""Command -> lines that can be typed as they are, the usual one first."""


def epilog(command: str) -> str:
    """Return what stands under a command's help; typer takes empty lines for ends of lines."""
    return "\n\n".join(["Examples:", *(f"\u2002{line}" for line in EXAMPLES[command])])
