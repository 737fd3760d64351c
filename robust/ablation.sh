#!/usr/bin/env bash
# What training on drawn occluders is worth, and how far seeds differ: the bundled weights trained on for six epochs, two
# seeds with occluders and glasses, two without. About a quarter of an hour on two cores; runs/occluders/occluders.md is
# the table.
#
#   bash robust/ablation.sh CELEBAMASK_HQ NO_FACE [PREPARED]
#
# A run that was killed is continued by starting the script again.
set -euo pipefail
cd "$(dirname "$0")/.."
source=$1 backgrounds=$2 data=${3:-CelebAMask-HQ}

python data_preprocessing.py --source "$source" --out "$data" --persons
for seed in 1 2; do
  for kind in with without; do
    run=runs/occluders/$kind-$seed
    options=(); [ "$kind" = with ] || options=(--occlusion-p 0 --glasses-p 0)
    again=(); [ ! -e "$run/last.pth" ] || again=(--resume)
    python main.py train --model lite --recipe robust --data "$data" --backgrounds "$backgrounds" --run-dir "$run" \
      --init weights/lite.pth --size 192 --epochs 6 --lr 1.5e-3 --seed "$seed" "${options[@]}" "${again[@]}"
    [ -e "$run/robustness.json" ] || python -m studies.robustness --weights "$run/model.best.pth" --data "$data" \
      --backgrounds "$backgrounds" --only faces "drawn occluders" --out "$run"
  done
done
python - <<'END'
import json
from pathlib import Path

tables = {k: [json.loads(Path(f"runs/occluders/{k}-{s}/robustness.json").read_text()) for s in (1, 2)]
          for k in ("with", "without")}
lines = ["| Dice (two seeds) | with occluders | without |", "|---|---|---|"]
for section in ("faces", "drawn occluders"):
    for row in tables["with"][0][section]:
        cells = [" / ".join(f"{t[section][row]['dice']:.3f}" for t in tables[kind]) for kind in ("with", "without")]
        lines.append(f"| {section}: {row} | {cells[0]} | {cells[1]} |")
Path("runs/occluders/occluders.md").write_text("\n".join(lines) + "\n")
print("\n".join(lines))
END
