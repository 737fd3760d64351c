#!/usr/bin/env bash
# The bundled weights, from scratch: four rounds on the CPU, about two and a half hours on two cores.
#
#   bash weights/recipe.sh CELEBAMASK_HQ NO_FACE UNLABELLED
#
# CELEBAMASK_HQ: the data set, zip or folder; NO_FACE: photographs without faces; UNLABELLED: more aligned CelebA-HQ faces.
# A round that was killed is continued by `python main.py train --resume --run-dir runs/lite-N`.
set -euo pipefail
cd "$(dirname "$0")/.."
source=$1 backgrounds=$2 unlabelled=$3

python data_preprocessing.py --source "$source" --persons
robust=(python main.py train --model lite --recipe robust --backgrounds "$backgrounds")
# 1. Small pictures, annotated faces only.
"${robust[@]}" --run-dir runs/lite-1 --stop-after 36
# 2. The other faces, with the masks that the first round predicts; 208, then 256 pixels.
"${robust[@]}" --run-dir runs/lite-2 --stop-after 17 --init runs/lite-1/model.best.pth --unlabelled "$unlabelled"
# 3. Their masks predicted anew; 256 pixels, more of the large faces that the second look sees.
"${robust[@]}" --run-dir runs/lite-3 --init runs/lite-2/model.best.pth --unlabelled "$unlabelled" \
  --size 256 --epochs 10 --lr 1e-3 --close-ups 0.7 --cover-p 0.4
# 4. Once more, for longer.
"${robust[@]}" --run-dir runs/lite-4 --init runs/lite-3/model.best.pth --unlabelled "$unlabelled" \
  --size 256 --epochs 22 --lr 1.5e-3 --close-ups 0.7 --cover-p 0.4 --seed 44 --compile
python main.py evaluate --weights runs/lite-4/model.best.pth
# In 16 bits, as bundled; its SHA-256 goes into const.py.
python - <<'END'
import model

state, info = model.read_state("runs/lite-4/model.best.pth")
model.save_state(state, "weights/lite.pth", info, half=True)
END
sha256sum weights/lite.pth
