#!/usr/bin/env bash
# Trains on a Cloud TPU VM of one host (up to 8 chips) through gcloud.
#
#   launch/tpu_vm.sh COMMAND --name NAME [OPTIONS] [-- ARGUMENTS OF pclseg.main]
#
#   create       make the VM; costs money until `delete`
#   setup        send the committed tree and build the environment from its lock
#   send PATH    copy a file or folder there, to the same path below the tree
#   run          start pclseg.main in the background; the same --workdir resumes
#   logs         follow its output
#   fetch PATH   copy a file or folder back from there
#   status       state of the VM
#   delete       delete the VM and its disk
#
# --zone, --project   default: those of `gcloud config`
# --type TYPE         accelerator type, default v5litepod-8
# --image IMAGE       runtime image, default that of the type
# --spot              cheaper; may be taken away at any time, then create it anew
# --dry-run           print the commands and do nothing

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

readonly FOLDER=pclseg

name="" path="" spot=no type=v5litepod-8 image=""
place=()

parse() {
    while [[ $# -gt 0 ]]; do
        case $1 in
            --name | --zone | --project | --type | --image)
                [[ $# -ge 2 ]] || die "$1 needs a value" ;;&
            --name) name=$2; shift 2 ;;
            --type) type=$2; shift 2 ;;
            --image) image=$2; shift 2 ;;
            --zone | --project) place+=("$1=$2"); shift 2 ;;
            --spot) spot=yes; shift ;;
            --dry-run) dry_run=yes; shift ;;
            --) shift; arguments=("$@"); return ;;
            -*) die "unknown option $1" ;;
            *)  [[ -z $path ]] || die "one PATH only, not also $1"
                path=$1; shift ;;
        esac
    done
}

tpu_vm() {
    run gcloud compute tpus tpu-vm "$@" "${place[@]}"
}

# Runs a shell command line on every worker of the VM.
on_vm() {
    tpu_vm ssh "$name" --worker=all --command="$1"
}

create() {
    image=${image:-$(tpu_image "$type")}
    local options=("--accelerator-type=$type" "--version=$image")
    if [[ $spot == yes ]]; then
        options+=(--spot)
    fi
    tpu_vm create "$name" "${options[@]}"
}

setup() {
    local archive=.cache/pclseg.tar.gz
    run mkdir -p .cache
    run git archive --format=tar.gz --output="$archive" HEAD
    run_with_retry gcloud compute tpus tpu-vm scp "$archive" "$name:pclseg.tar.gz" \
        --worker=all "${place[@]}"
    on_vm "set -e; mkdir -p $FOLDER; tar -xzf pclseg.tar.gz -C $FOLDER; cd $FOLDER; \
source launch/common.sh; build_tpu_venv"
}

send() {
    [[ -n $path ]] || die "send needs a PATH"
    on_vm "mkdir -p $(printf %q "$FOLDER/$(dirname "$path")")"
    tpu_vm scp --recurse "$path" "$name:$FOLDER/$(dirname "$path")/" --worker=all
}

# setsid and the redirections let ssh return while the training goes on.
start() {
    [[ ${#arguments[@]} -gt 0 ]] || die "run needs the arguments of pclseg.main after --"
    on_vm "cd $FOLDER && (setsid .venv-tpu/bin/python -m pclseg.main\
$(printf ' %q' "${arguments[@]}") >>run.log 2>&1 </dev/null &)"
}

fetch() {
    [[ -n $path ]] || die "fetch needs a PATH"
    run mkdir -p "$(dirname "$path")"
    tpu_vm scp --recurse "$name:$FOLDER/$path" "$(dirname "$path")/" --worker=0
}

arguments=()
command=${1:-}
case $command in
    create | setup | send | run | logs | fetch | status | delete) shift ;;
    --help | -h) usage; exit 0 ;;
    "") die "no command" ;;
    *) die "unknown command $command" ;;
esac
parse "$@"
[[ -n $name ]] || die "--name is missing"

case $command in
    run) start ;;
    logs) on_vm "tail -n 100 -F $FOLDER/run.log" ;;
    status) tpu_vm describe "$name" --format="value(state,health)" ;;
    delete) tpu_vm delete "$name" --quiet ;;
    *) "$command" ;;
esac
