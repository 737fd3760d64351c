#!/usr/bin/env bash
# The bundled weights, from scratch: six rounds on the CPU, about four hours on two cores.
#
#   bash robust/recipe.sh CELEBAMASK_HQ NO_FACE UNLABELLED
#
# CELEBAMASK_HQ: the data set, zip or folder; NO_FACE: photographs without faces; UNLABELLED: more aligned CelebA-HQ faces.
# A round that was killed is continued by `python main.py train --resume --run-dir runs/lite-N`.
set -euo pipefail
cd "$(dirname "$0")/.."
source=$1 backgrounds=$2 unlabelled=$3

python data_preprocessing.py --source "$source" --persons
robust=(python main.py train --model lite --recipe robust --backgrounds "$backgrounds")
# The mean of weights and the last epoch of a run (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482), in 16 bits, with
# the size of the looks and how sure the network is of a face: average WEIGHTS RUN OUT SIZE SURE
average() {
  python - "$@" <<'END'
import sys
from dataclasses import replace

import torch

import model

weights, run, out, size, sure = sys.argv[1:]
one, info = model.read_state(weights)
last = torch.load(f"{run}/last.pth", weights_only=True)["averaged"]
mean = {k: (v + last["module." + k]) / 2 if v.is_floating_point() else v for k, v in one.items()}
model.save_state(mean, out, replace(info, size=int(size), sure=float(sure)), half=True)
END
}
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
average runs/lite-5/model.best.pth runs/lite-5 runs/lite-5/mean.pth 352 0.9
# 6. At 384 pixels; what it began with finds faces in photographs better, its last epoch draws edges better.
"${robust[@]}" --run-dir runs/lite-6 --init runs/lite-5/mean.pth --unlabelled "$unlabelled" \
  --size 384 --epochs 14 --lr 1e-3 --close-ups 0.7 --cover-p 0.4 --seed 46 --compile
average runs/lite-5/mean.pth runs/lite-6 weights/lite.pth 384 0.965
# The file's SHA-256 goes into const.py.
sha256sum weights/lite.pth
python main.py evaluate --weights weights/lite.pth
