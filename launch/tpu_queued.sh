#!/usr/bin/env bash
# Trains on a queued Cloud TPU, of one host or several, that starts the run by itself.
#
#   launch/tpu_queued.sh COMMAND --name NAME [OPTIONS] [-- ARGUMENTS OF pclseg.main]
#
#   create   send the committed tree to the bucket and queue for the TPU; once it is
#            there it runs launch/tpu_startup.sh, and costs money until `delete`
#   run      the same unless NAME exists, then watch until the run has finished; a Spot
#            TPU that was taken away is deleted and queued for anew
#   status   state of the queued resource, with the reason of a failure
#   logs     follow what the workers print
#   delete   delete the queued resource and its TPU with the disks; --workdir stays
#
# --workdir gs://BUCKET/FOLDER  run directory; the same one resumes, on any TPU
# --data gs://BUCKET/FOLDER     copied to data/FOLDER in the tree; may be repeated
# --code CODE, --ref REF  instead of the committed tree: gs://BUCKET/FILE.tar.gz of it,
#                         or the URL of a public git repository and a commit of it
# --spot              cheaper; may be taken away at any time
# --reserved          from a reservation of the project
# --wait              create: return when the TPU is there
# --delete            run: delete the TPU when the run has finished
# --type TYPE         accelerator type, default v5litepod-8
# --image IMAGE       runtime image, default that of the type
# --zone, --project   default: those of `gcloud config`
# --dry-run           print the commands and do nothing

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

readonly LOG=/opt/pclseg/startup.log
readonly MISSED_POLLS=30

name="" workdir="" code="" type=v5litepod-8 image="" kind="" wait=no delete=no
place=() data=() ref=() arguments=()

parse() {
    while [[ $# -gt 0 ]]; do
        case $1 in
            --name | --workdir | --data | --code | --ref | --type | --image | --zone | \
                --project)
                [[ $# -ge 2 ]] || die "$1 needs a value" ;;&
            --name) name=$2; shift 2 ;;
            --workdir) workdir=${2%/}; shift 2 ;;
            --data) data+=("$1" "$2"); shift 2 ;;
            --code) code=$2; shift 2 ;;
            --ref) ref=("$1" "$2"); shift 2 ;;
            --type) type=$2; shift 2 ;;
            --image) image=$2; shift 2 ;;
            --zone | --project) place+=("$1=$2"); shift 2 ;;
            --spot | --reserved)
                [[ -z $kind || $kind == "$1" ]] || die "$kind or $1, not both"
                kind=$1; shift ;;
            --wait) wait=yes; shift ;;
            --delete) delete=yes; shift ;;
            --dry-run) dry_run=yes; shift ;;
            --) shift; arguments=("$@"); return ;;
            *) die "unknown argument $1" ;;
        esac
    done
}

# HOW is run or run_with_retry.
queued() {
    "$1" gcloud compute tpus queued-resources "${@:2}" "${place[@]}"
}

# Prints what gcloud answers to a question; NONE where there is no such thing.
ask() {
    local answer errors
    errors=$(mktemp)
    if ! answer=$(gcloud compute tpus "$@" "${place[@]}" 2>"$errors"); then
        answer=""
        if grep -q NOT_FOUND "$errors"; then
            answer=NONE
        else
            cat "$errors" >&2
        fi
    fi
    rm -f "$errors"
    echo "$answer"
    [[ -n $answer ]]
}

state_of() {
    ask queued-resources describe "$name" --format="value(state.state)"
}

# How the run stands, from the marks of its workers: "finished", "failed" or "open".
outcome() {
    local marks
    marks=$(gcloud storage ls "$launch/$job/" 2>/dev/null) || marks=""
    if [[ $marks == *"/$job/failed-"* ]]; then
        echo failed
    elif all_finished "$marks"; then
        echo finished
    else
        echo open
    fi
}

# Sends the code and the start-up script; the latter says with what NAME was created.
prepare() {
    local archive=.cache/$name.tar.gz
    run mkdir -p .cache
    if [[ -z $code ]]; then
        code=$launch/code.tar.gz
        run git archive --format=tar.gz --output="$archive" HEAD
        run_with_retry gcloud storage cp "$archive" "$code"
    fi
    run launch/tpu_startup.sh --write "$startup" --code "$code" "${ref[@]}" \
        --workdir "$workdir" "${data[@]}" -- "${arguments[@]}"
    run_with_retry gcloud storage cp "$startup" "$launch/$job/startup.sh"
}

queue() {
    local options=("--node-id=$name" "--accelerator-type=$type"
        "--runtime-version=$image")
    if [[ -n $kind ]]; then
        options+=("$kind")
    fi
    queued "$1" create "$name" "${options[@]}" \
        "--metadata-from-file=startup-script=$startup"
}

create() {
    local before=open
    [[ $dry_run == yes ]] || before=$(outcome)
    case $before in
        finished) die "this run is finished: $workdir" ;;
        failed) run gcloud storage rm "$launch/$job/failed-*" ;; # of an earlier try
    esac
    prepare
    queue run
}

# The TPU and its disks are gone; a Spot TPU cannot be started again.
queue_again() {
    say "$name was taken away; again from what is saved"
    delete_all
    queue run_with_retry
}

# With --force the TPU too, not only its place in the queue.
delete_all() {
    queued run_with_retry delete "$name" --force --quiet
}

explain() {
    case $1 in
        WAITING_FOR_RESOURCES | ACCEPTED) say "$name: $1: in the queue" ;;
        ACTIVE) say "$name: $1: the TPU is there and costs money" ;;
        FAILED)
            say "$name: $1: it will not come; delete it and create it anew. Why:"
            queued run describe "$name" --format="yaml(state)" ;;
        SUSPENDED) say "$name: $1: its TPU is gone" ;;
        NONE) say "$name: there is no such queued resource (any more)" ;;
        *) say "$name: $1" ;;
    esac
}

# Polls until the TPU is "there" or the run has "finished".
follow() {
    local goal=$1 state="" before missed=0
    while true; do
        before=$state
        if [[ $goal == finished ]]; then
            case $(outcome) in
                finished) say "$name: the run has finished"; return 0 ;;
                failed)
                    say "$name: the run failed. The end of its log:"
                    run gcloud storage cat "$launch/$job/failed-*" || true
                    remind
                    return 1 ;;
            esac
        fi
        if ! state=$(state_of); then
            missed=$((missed + 1))
            say "no answer ($missed)"
            [[ $missed -lt $MISSED_POLLS ]] || return 1
            sleep "${POLL_SECONDS:-60}"
            continue
        fi
        missed=0
        [[ $state == "$before" ]] || explain "$state"
        case $state:$goal in
            ACTIVE:there) return 0 ;;
            FAILED:* | NONE:* | SUSPENDED:there) return 1 ;;
            SUSPENDED:finished)
                [[ $kind == --spot ]] || return 1
                queue_again ;;
            ACTIVE:finished)
                if [[ $kind == --spot ]] && was_taken; then
                    queue_again
                fi ;;
        esac
        sleep "${POLL_SECONDS:-60}"
    done
}

# The queued resource may still be ACTIVE then.
was_taken() {
    local state
    state=$(ask tpu-vm describe "$name" --format="value(state)") || return 1
    [[ $state == PREEMPTED || $state == TERMINATED ]]
}

# Begins with what is there: nothing, or what this command made earlier.
start() {
    local state
    state=$(state_of)
    if [[ $state == NONE ]]; then
        create
    elif gcloud storage ls "$launch/$job/startup.sh" >/dev/null; then
        run mkdir -p .cache
        run_with_retry gcloud storage cp "$launch/$job/startup.sh" "$startup"
    else
        die "$name exists, but not for these arguments and this --workdir"
    fi
}

start_and_watch() {
    if [[ $dry_run == yes ]]; then
        create
        show gcloud compute tpus queued-resources describe "$name" \
            --format="value(state.state)" "${place[@]}"
        show gcloud storage ls "$launch/$job/"
    else
        if [[ $(outcome) != finished ]]; then
            start
        fi
        follow finished
    fi
    if [[ $delete == no ]]; then
        remind
    elif [[ $dry_run == yes || $(state_of) != NONE ]]; then
        delete_all
    fi
}

remind() {
    if [[ $dry_run == no ]]; then
        say "what is there costs money until: launch/tpu_queued.sh delete --name $name"
    fi
}

command=${1:-}
case $command in
    create | run | status | logs | delete) shift ;;
    --help | -h) usage; exit 0 ;;
    "") die "no command" ;;
    *) die "unknown command $command" ;;
esac
parse "$@"
[[ -n $name ]] || die "--name is missing"
[[ ${#ref[@]} == 0 || -n $code ]] || die "--ref needs --code"
if [[ $command == create || $command == run ]]; then
    check_job "$workdir" "${arguments[@]}"
    image=${image:-$(tpu_image "$type")}
    launch=$workdir/launch job=$(job_of "${arguments[@]}")
    startup=.cache/$name.startup.sh
fi

case $command in
    create)
        create
        if [[ $wait == yes && $dry_run == no ]]; then
            follow there
        fi
        remind ;;
    run) start_and_watch ;;
    status) queued run describe "$name" --format="yaml(state)" ;;
    logs)
        run gcloud compute tpus tpu-vm ssh "$name" --worker=all \
            --command="tail -n 100 -F $LOG" "${place[@]}" ;;
    delete) delete_all ;;
esac
