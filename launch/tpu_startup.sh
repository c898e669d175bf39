#!/usr/bin/env bash
# Trains on a worker of a Cloud TPU; the start-up script that launch/tpu_queued.sh gives it.
#
#   launch/tpu_startup.sh --code CODE --workdir gs://BUCKET/FOLDER [OPTIONS] \
#       -- ARGUMENTS OF pclseg.main
#
# Runs on every worker at every boot, and whatever is done already is not done again: it
# fetches the code, builds the environment from its lock, fetches the data and what an
# earlier machine saved, and starts pclseg.main with --coordinator=auto. pclseg writes to
# disks only, so the run lies in /opt/pclseg/run and is saved to --workdir/launch on the
# way; once finished it is copied to --workdir. What it prints goes to
# /opt/pclseg/startup.log. The machine's service account must be able to write there.
#
# --code CODE         gs://BUCKET/FILE.tar.gz with the tree, or the URL of a git
#                     repository that can be read without a password
# --ref REF           commit, tag or branch of that repository, default HEAD
# --data gs://FOLDER  copied to data/ in the tree under its own name; may be repeated
# --save-minutes N    how often the run is saved, default 10
# --folder FOLDER     instead of /opt/pclseg
# --write FILE        only write a script that does all this without another file; goes
#                     first
# --dry-run           print the commands and do nothing

set -euo pipefail
# At boot there is no tree yet: --write has put common.sh above this.
if ! declare -F run >/dev/null; then
    # shellcheck source=launch/common.sh
    source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
fi

readonly STOPPED=75 # status of a run that was asked to stop
readonly TRIES=3
# Of the services of the images.
export HOME=${HOME:-/root} PATH=$PATH:/snap/bin

code="" ref=HEAD workdir="" folder=/opt/pclseg save_minutes=10 child=""
data=() arguments=()

parse() {
    while [[ $# -gt 0 ]]; do
        case $1 in
            --code | --ref | --workdir | --data | --save-minutes | --folder)
                [[ $# -ge 2 ]] || die "$1 needs a value" ;;&
            --code) code=$2; shift 2 ;;
            --ref) ref=$2; shift 2 ;;
            --workdir) workdir=${2%/}; shift 2 ;;
            --data) data+=("${2%/}"); shift 2 ;;
            --save-minutes) save_minutes=$2; shift 2 ;;
            --folder) folder=$2; shift 2 ;;
            --dry-run) dry_run=yes; shift ;;
            --help | -h) usage; exit 0 ;;
            --) shift; arguments=("$@"); break ;;
            *) die "unknown argument $1; those of pclseg.main come after --" ;;
        esac
    done
    [[ -n $code ]] || die "--code is missing"
    [[ $save_minutes =~ ^[0-9]+$ ]] || die "--save-minutes is '$save_minutes'"
    check_job "$workdir" "${arguments[@]}"
    launch=$workdir/launch job=$(job_of "${arguments[@]}")
    tree=$folder/tree run_dir=$folder/run log=$folder/startup.log
}

# Writes this script, what it needs and its arguments to one file.
write() {
    local file=$1
    shift
    {
        echo "#!/usr/bin/env bash"
        cat "$(dirname "${BASH_SOURCE[0]}")/common.sh"
        printf '\nset -- "$@"'
        printf ' %q' "$@"
        printf '\n\n'
        cat "${BASH_SOURCE[0]}"
    } >"$file"
}

# What the TPU told this machine about itself.
attribute() {
    curl --silent --show-error --fail --retry 5 --header "Metadata-Flavor: Google" \
        "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

identify() {
    worker=0 workers=1 since=TIME
    if [[ $dry_run == no ]]; then
        [[ -s $folder/since ]] || date -u +%Y%m%dT%H%M%S.%NZ >"$folder/since"
        since=$(<"$folder/since")
        worker=$(attribute agent-worker-number)
        workers=$(attribute worker-network-endpoints | tr , '\n' | grep -c .)
    fi
}

# A copy of the log: the log itself grows while it is sent. The machine that replaces this
# one sends another.
send_log() {
    run cp "$log" "$folder/sent.log"
    run gcloud storage cp "$folder/sent.log" "$launch/worker-$worker-$since.log"
}

# Leaves a mark of this worker in the bucket, with the end of the log as its text.
mark() {
    if [[ $dry_run == no ]]; then
        tail -n 30 "$log" >"$folder/mark"
    fi
    run_with_retry gcloud storage cp "$folder/mark" "$launch/$job/$1"
}

# A failure must be seen from outside: the machine costs money until it is deleted.
# shellcheck disable=SC2329 # called by trap
leave() {
    local status=$1
    if [[ $status != 0 ]]; then
        say "failed with status $status; this machine goes on to cost money"
        mark "failed-$worker" || say "and that could not be told"
        send_log || true
    fi
}

fetch_code() {
    run mkdir -p "$tree"
    if [[ $code == gs://* ]]; then
        run_with_retry gcloud storage cp "$code" "$folder/code.tar.gz"
        run tar --extract --gzip --file="$folder/code.tar.gz" --directory="$tree"
    else
        run git init --quiet "$tree"
        run_with_retry git -C "$tree" fetch --quiet --depth=1 "$code" "$ref"
        run git -C "$tree" checkout --quiet --force --detach FETCH_HEAD
    fi
    run cd "$tree"
}

fetch_data() {
    local source
    for source in "${data[@]}"; do
        run mkdir -p "data/${source##*/}"
        run_with_retry gcloud storage rsync --recursive "$source" "data/${source##*/}"
    done
}

# The run as the machine before this one saved it; after a reboot it is still here.
fetch_run() {
    if [[ -d $run_dir ]]; then
        say "$run_dir is of before"
        return
    fi
    if [[ $dry_run == no ]] && ! grep -qxF "$launch/state.tar" <<<"$objects"; then
        say "nothing is saved in $launch: a new run"
        return
    fi
    run_with_retry gcloud storage cp "$launch/state.tar" "$folder/state.tar"
    run rm -rf "$run_dir.new"
    run mkdir "$run_dir.new"
    run tar --extract --file="$folder/state.tar" --directory="$run_dir.new"
    run mv "$run_dir.new" "$run_dir"
}

# Of several processes one alone writes the run directory, beginning with run.json.
is_writer() {
    [[ $run_dir/run.json -nt $folder/started ]]
}

# A copy of the run directory at one moment, by links; pclseg stands still for that long.
freeze() {
    local status=0
    rm -rf "$folder/now"
    kill -STOP "$child" 2>/dev/null || true # it may have ended
    cp --archive --link "$run_dir" "$folder/now" || status=$?
    kill -CONT "$child" 2>/dev/null || true
    return "$status"
}

# One object, so that a machine taken away in between leaves the one before.
save() {
    local status=0
    if ! is_writer; then
        send_predictions && send_log
        return
    fi
    freeze || return
    tar --create --file="$folder/state.tar" --exclude="*.orbax-checkpoint-tmp" \
        --directory="$folder/now" . || status=$?
    rm -rf "$folder/now"
    [[ $status -le 1 ]] || return "$status" # 1: the log grew meanwhile
    run gcloud storage cp "$folder/state.tar" "$launch/state.tar" && send_log
}

# Every process writes the predictions that it makes.
send_predictions() {
    [[ ! -d $run_dir/predictions ]] || run_with_retry gcloud storage rsync --recursive \
        "$run_dir/predictions" "$workdir/predictions"
}

# Runs pclseg.main and saves now and then; returns its status.
train() {
    local status=0 saved=$SECONDS
    local program=(.venv-tpu/bin/python -m pclseg.main --coordinator=auto
        "--stopped_status=$STOPPED" "--workdir=$run_dir" "${arguments[@]}")
    show "${program[@]}"
    if [[ $dry_run == yes ]]; then
        return
    fi
    touch "$folder/started"
    "${program[@]}" &
    child=$!
    trap 'kill -TERM "$child" 2>/dev/null || true' TERM # pclseg saves
    while kill -0 "$child" 2>/dev/null; do
        sleep "${POLL_SECONDS:-5}" &
        wait "$!" || true
        if ((SECONDS - saved >= 60 * save_minutes)); then
            save || say "not saved; again in $save_minutes minutes"
            saved=$SECONDS
        fi
    done
    wait "$child" || status=$?
    trap 'exit 0' TERM # from here on there is nothing to be saved by pclseg
    return "$status"
}

finish() {
    if [[ $dry_run == yes ]] || is_writer; then
        run_with_retry gcloud storage rsync --recursive "$run_dir" "$workdir"
    else
        send_predictions
    fi
    send_log
    mark "finished-$worker-of-$workers"
}

if [[ ${1:-} == --write ]]; then
    [[ $# -ge 2 ]] || die "--write needs a file"
    parse "${@:3}"
    write "${@:2}"
    exit
fi
parse "$@"

objects=""
if [[ $dry_run == no ]]; then
    mkdir -p "$folder"
    exec >>"$log" 2>&1 9>"$folder/lock"
    flock --nonblock 9 || exit 0 # it runs already
    say "start of ${BASH_SOURCE[0]}"
fi
if [[ $dry_run == no ]]; then
    worker=unknown
    trap 'leave "$?"' EXIT
    trap 'exit 0' TERM # the machine is taken away, which is no failure
fi
identify
if [[ $dry_run == no ]]; then
    # With this in the bucket the list below is never empty, and a failure is one.
    run_with_retry send_log
    objects=$(run_with_retry gcloud storage ls "$launch/**")
    # Only where all have finished: this one's mark alone may be of a TPU that was taken
    # away in between, and the others would wait for it.
    if all_finished "$(grep -F "$launch/$job/" <<<"$objects")"; then
        say "finished before"
        exit 0
    fi
fi
fetch_code
build_tpu_venv
fetch_data
fetch_run
for ((try = 1; try <= TRIES; try++)); do
    status=0
    train || status=$?
    [[ $dry_run == yes ]] || save || say "not saved"
    case $status in
        0) finish; exit 0 ;;
        "$STOPPED") say "stopped as asked"; exit 0 ;;
    esac
    say "pclseg.main ended with status $status, try $try of $TRIES"
    sleep "${RETRY_SECONDS:-15}"
done
exit "$status"
