#!/usr/bin/env bash
# Few labels on real volumes: every arm, number of labelled patients and fold, one after
# the other, with the same budget. What is finished is skipped, what was stopped goes on.
#
#   benchmarks/few_labels.sh hippocampus ../shared/data/Task04_Hippocampus runs/few_labels
#   benchmarks/few_labels.sh acdc:size=cpu ../shared/data/ACDC runs/few_labels
#
# FOLDS="0 1", LABELLED="2 6", ARMS="scratch simclr gcl pcl" and PYTHON may be set. An arm
# pre-trains once a fold, in the run of its first LABELLED; the others start from there.
# Several may run at once, of different folds; the last call then names them all.

set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 DATASET[:ARG=VALUE,...] RAW_DIR OUT [--config.KEY=VALUE ...]" >&2
    exit 1
fi
dataset=${1%%:*}
arguments=${1#"$dataset"}
arguments=${arguments#:}
raw_dir=$2
out=$3
shift 3
read -ra folds <<<"${FOLDS:-0 1}"
read -ra labelled <<<"${LABELLED:-2 6}"
read -ra arms <<<"${ARMS:-scratch simclr gcl pcl}"
python=${PYTHON:-python}

run_dir() { # ARM LABELLED FOLD
    echo "$out/${dataset}_$1_m$2_f$3"
}

run() { # ARM LABELLED FOLD [FLAG ...]
    local arm=$1 number=$2 fold=$3
    shift 3
    "$python" -m pclseg.main --workdir="$(run_dir "$arm" "$number" "$fold")" \
        --config="configs/${arm}_$dataset.py:fold=$fold,labelled=$number${arguments:+,$arguments}" \
        --config.data.raw_dir="$raw_dir" "$@"
}

all=()
for fold in "${folds[@]}"; do
    for arm in "${arms[@]}"; do
        first=$(run_dir "$arm" "${labelled[0]}" "$fold")
        for number in "${labelled[@]}"; do
            all+=("$(run_dir "$arm" "$number" "$fold")")
            if [ "$arm" = scratch ] || [ "$number" = "${labelled[0]}" ]; then
                run "$arm" "$number" "$fold" "$@"
            else
                run "$arm" "$number" "$fold" --config.stages="('finetune',)" \
                    --config.finetune.init_from="$first/pretrain" "$@"
            fi
        done
    done
done
"$python" -m pclseg.cli.table --baseline=scratch --markdown "${all[@]}" \
    >"$out/$dataset.md"
for number in "${labelled[@]}"; do # curves of one label count in one picture
    runs=()
    for run in "${all[@]}"; do
        if [[ $run == *_m"${number}"_f* ]]; then runs+=("$run"); fi
    done
    "$python" -m pclseg.cli.figures "${runs[@]}" --out="$out/${dataset}_figures/m$number"
done
echo "$out/$dataset.md"
