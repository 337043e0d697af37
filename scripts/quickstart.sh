#!/usr/bin/env bash
# From nothing to a trained, scored and publishable captioner on generated images, in a few minutes on two cores.
# Arguments go to hfcap run: bash scripts/quickstart.sh train.num_train_epochs=2
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment ""
cd "$project"

"$venv/bin/hfcap" run recipes/quickstart.yaml "$@"

cat <<END

First:  source ${venv#"$project"/}/bin/activate
Also:   hfcap publish runs/quickstart --repo-id YOU/NAME --dry-run         what would go to the Hub
        hfcap run recipes/blip/folder_lora.yaml data.root=YOUR_IMAGES    fine-tune BLIP on images of your own
END
