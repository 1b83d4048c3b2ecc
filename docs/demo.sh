#!/bin/sh
# The whole flow in minutes on a laptop: sample -> build -> inspect -> pre-train -> evaluate.
# Every command is printed before it runs; they are the ones you would type for the real releases.
set -eu
demo=${1:-demo}

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

# 1. Miniature releases of all five sources, in their official raw layouts.
run xvlm-data sample --out "$demo/raw" --images "${IMAGES:-1600}" --seed 0 --overwrite

# 2. One manifest each; and two held-out ones, of scenes that no training manifest holds.
for source in coco vg sbu cc3m objects365; do
    run xvlm-data build --source $source --root "$demo/raw/$source" \
        --out "$demo/manifests/$source" --images embed
done
run xvlm-data build --source coco --root "$demo/raw/coco" --split val \
    --out "$demo/manifests/coco_val" --images embed
run xvlm-data build --source vg --root "$demo/raw/vg_val" --split val \
    --out "$demo/manifests/vg_val" --images embed

# 3. What is in them, and does every row keep its promises?
run xvlm-data inspect "$demo/manifests/vg" --validate --decode --draw 6 "$demo/pictures/manifest"

# 4. Pre-train, all five losses, from scratch.
rm -rf "$demo/run"
run xvlm-train pretrain --preset tiny --out "$demo/run" ${STEPS:+--steps "$STEPS"} \
    --manifest "$demo/manifests/coco" --manifest "$demo/manifests/vg" \
    --manifest "$demo/manifests/sbu" --manifest "$demo/manifests/cc3m" \
    --manifest "$demo/manifests/objects365" --val-manifest "$demo/manifests/vg_val"

# 5. What it has learnt, on held-out scenes.
run xvlm-train curves "$demo/run" "$demo/pictures/losses.png"
run xvlm-train evaluate "$demo/run" --manifest "$demo/manifests/coco_val" \
    --manifest "$demo/manifests/vg_val" --pictures 12 "$demo/pictures/grounding"

printf '\nThe model:    %s/run/checkpoints\nThe pictures: %s/pictures\n' "$demo" "$demo"
