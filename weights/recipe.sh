#!/usr/bin/env bash
# The bundled weights, from scratch: six rounds on the CPU, about four hours on two cores.
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
# 5. At 320 pixels, from which the second look gains; their masks predicted at that size, too.
"${robust[@]}" --run-dir runs/lite-5 --init runs/lite-4/model.best.pth --unlabelled "$unlabelled" \
  --size 320 --epochs 22 --lr 1.5e-3 --close-ups 0.7 --cover-p 0.4 --seed 45 --compile
# Weights are averaged from here on (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482): the best epoch and the last.
python - <<'END'
import torch

import model

best, info = model.read_state("runs/lite-5/model.best.pth")
last = torch.load("runs/lite-5/last.pth", weights_only=True)["averaged"]
mean = {k: (v + last["module." + k]) / 2 if v.is_floating_point() else v for k, v in best.items()}
model.save_state(mean, "runs/lite-5/mean.pth", info, half=True)
END
# 6. At 384 pixels.
"${robust[@]}" --run-dir runs/lite-6 --init runs/lite-5/mean.pth --unlabelled "$unlabelled" \
  --size 384 --epochs 14 --lr 1e-3 --close-ups 0.7 --cover-p 0.4 --seed 46 --compile
# The mean of what it began with and its last epoch, both looks at 384 pixels, and how sure it is of faces (inference.py);
# in 16 bits, as bundled. The file's SHA-256 goes into const.py.
python - <<'END'
from dataclasses import replace

import torch

import model

before, info = model.read_state("runs/lite-5/mean.pth")
last = torch.load("runs/lite-6/last.pth", weights_only=True)["averaged"]
mean = {k: (v + last["module." + k]) / 2 if v.is_floating_point() else v for k, v in before.items()}
model.save_state(mean, "weights/lite.pth", replace(info, size=384, sure=0.965), half=True)
END
sha256sum weights/lite.pth
python main.py evaluate --weights weights/lite.pth
