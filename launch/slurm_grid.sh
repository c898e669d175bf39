#!/usr/bin/env bash
# Submits a grid (docs/grid.md) to SLURM: an array a wave, each after the one before.
#
#   launch/slurm_grid.sh [--dry-run] GRID --out=OUT [OTHER ARGUMENTS OF pclseg.cli.grid] \
#       [-- OPTIONS OF sbatch]
#
#   launch/slurm_grid.sh configs/grids/acdc.py --out=runs/acdc \
#       --set=data.raw_dir=/data/ACDC -- --partition=gpu
#
# Finished cells end at once, so submitting again only fills gaps. As to folder,
# environment and time limit see launch/slurm.sbatch.
#
# --dry-run  print the commands and submit nothing

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

arguments=() options=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --help | -h) usage; exit 0 ;;
        --dry-run) dry_run=yes; shift ;;
        --) shift; options=("$@"); break ;;
        *) arguments+=("$1"); shift ;;
    esac
done
[[ ${#arguments[@]} -gt 0 ]] || die "which grid? give its file and --out"

if ! listed=$("${VENV:-.venv-cuda13}/bin/python" -m pclseg.cli.grid \
    "${arguments[@]}" --list 2>&1); then
    echo "$listed" >&2
    exit 1
fi
before=()
while read -r cells; do
    command=(sbatch --parsable "--array=$cells" "${before[@]}" "${options[@]}"
        launch/slurm_array.sbatch "${arguments[@]}")
    if [[ $dry_run == yes ]]; then
        run "${command[@]}"
        job=JOB_OF_$cells
    else
        job=$("${command[@]}")
        echo "cells $cells: job $job"
    fi
    before=("--dependency=afterok:${job%%;*}" --kill-on-invalid-dep=yes)
done < <(sed -nE 's/^wave [0-9]+: cells ([0-9]+-[0-9]+).*/\1/p' <<<"$listed")
