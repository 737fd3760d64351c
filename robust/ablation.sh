#!/usr/bin/env bash
# An ablation of the recipe with equal steps: the first stage at 160 pixels, all components, then without one of them.
# About five minutes a run on two idle CPU cores with bf16; runs/ablation/table.md is the table.
#
#   bash robust/ablation.sh PREPARED NO_FACE OCCLUDERS [SEEDS]
#
# PREPARED: the output of `data_preprocessing.py --persons`; the others as in recipe.sh. A run that was killed is continued
# by starting the script again.
set -euo pipefail
data=$(realpath "$1") backgrounds=$(realpath "$2") occluders=$(realpath "$3")
cd "$(dirname "$0")/.."
lists=robust/lists/mislabelled-train.txt

run() { # run NAME EPOCHS OPTIONS
  local dir=runs/ablation/$1
  if [ -e "$dir/last.pth" ]; then
    python main.py train --resume --run-dir "$dir" --data "$data"
  else
    python main.py train --model lite --recipe robust --data "$data" --backgrounds "$backgrounds" --size 160 \
      --run-dir "$dir" --epochs "$2" "${@:3}"
  fi
  [ -e "$dir/robustness.json" ] || python -m studies.robustness --weights "$dir/model.best.pth" --data "$data" \
    --backgrounds "$backgrounds" --occluders "$occluders" --limit 200 --out "$dir" \
    --only faces "photographed occluders"
}

for seed in ${4:-1}; do
  photographed=(--occluders "$occluders")
  run "all-$seed" 4 --seed "$seed" "${photographed[@]}" --exclude "$lists"
  run "without ImageNet features-$seed" 4 --seed "$seed" "${photographed[@]}" --exclude "$lists" --no-pretrained
  run "780 faces-$seed" 10 --seed "$seed" "${photographed[@]}" --exclude "$lists" --limit 780
  run "without photographed occluders-$seed" 4 --seed "$seed" --exclude "$lists"
  run "with the wrongly labelled faces-$seed" 4 --seed "$seed" "${photographed[@]}"
done
python - <<'END' | tee runs/ablation/table.md
import json
from pathlib import Path

print("| run | Dice: clean faces | hands | objects | masks | false positives on occluded pixels: hands | objects | masks |")
print("|---|---|---|---|---|---|---|---|")
for path in sorted(Path("runs/ablation").glob("*/robustness.json")):
    table = json.loads(path.read_text())
    photographed = [table["photographed occluders"][kind] for kind in ("hands", "objects", "masks")]
    cells = [f"{row['dice']:.4f}" for row in (table["faces"]["clean"], *photographed)]
    cells += [f"{row['occluded_false_positive_rate']:.1%}" for row in photographed]
    print(f"| {path.parent.name} | {' | '.join(cells)} |")
END
