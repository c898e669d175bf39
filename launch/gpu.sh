#!/usr/bin/env bash
# Trains on the GPUs of this machine, from a virtual environment of its own.
#
#   launch/gpu.sh [--cuda 12|13] [--dry-run] -- ARGUMENTS OF pclseg.main
#
#   launch/gpu.sh -- --config=configs/pcl_acdc.py --workdir=runs/pcl_acdc
#
# --cuda     13 (default) needs an NVIDIA driver from 580 on, 12 one from 525 on
# --dry-run  print the commands and do nothing
# The environment is built once, in .venv-cuda13 or .venv-cuda12, from the lock with its
# hashes. The same --workdir resumes. PYTHON names another Python than python3.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

cuda=13
while [[ $# -gt 0 ]]; do
    case $1 in
        --cuda) cuda=${2:-}; shift 2 || die "--cuda needs 12 or 13" ;;
        --dry-run) dry_run=yes; shift ;;
        --help | -h) usage; exit 0 ;;
        --) shift; break ;;
        *) die "unknown argument $1; those of pclseg.main come after --" ;;
    esac
done
[[ $cuda == 12 || $cuda == 13 ]] || die "--cuda is '$cuda'; expected 12 or 13"
[[ $# -gt 0 ]] || die "nothing to run: give the arguments of pclseg.main after --"

venv=.venv-cuda$cuda
run make --no-print-directory venv "EXTRA=cuda$cuda" "VENV=$venv" \
    "PYTHON=${PYTHON:-python3}"
run_last "$venv/bin/python" -m pclseg.main "$@"
