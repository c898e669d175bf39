# shellcheck shell=bash
# Shared by the launch scripts; sourced, not run.

dry_run=no

# Says what went wrong and how to read the usage; exit code 2.
die() {
    echo "$(basename "$0"): $1 (see --help)" >&2
    exit 2
}

# Prints the head comment of a script as its help.
usage_of() {
    sed -nE '2,/^$/s/^# ?//p' "$1"
}

usage() {
    usage_of "$0"
}

# Prints a command, quoted so that it can be pasted.
show() {
    printf '%q ' "$@" | sed 's/ $//'
    echo
}

# The same, and runs it unless --dry-run.
run() {
    show "$@"
    if [[ $dry_run == no ]]; then
        "$@"
    fi
}

# As run, in place of this shell, so that signals reach the command.
run_last() {
    show "$@"
    if [[ $dry_run == no ]]; then
        exec "$@"
    fi
}

# As run, tried again four times: a new machine refuses its first connections.
run_with_retry() {
    local tries=5
    until run "$@"; do
        tries=$((tries - 1))
        if [[ $tries == 0 ]]; then
            return 1
        fi
        echo "failed; again in ${RETRY_SECONDS:-15} s" >&2
        sleep "${RETRY_SECONDS:-15}"
    done
}

# Prints a line with the time.
say() {
    TZ=UTC0 printf '%(%FT%TZ)T %s\n' -1 "$*"
}

# The runtime image of a TPU type.
tpu_image() {
    case $1 in
        v6e-*) echo v2-alpha-tpuv6e ;;
        v5p-*) echo v2-alpha-tpuv5 ;;
        v5litepod-*) echo v2-alpha-tpuv5-lite ;;
        v4-* | v3-* | v2-*) echo tpu-ubuntu2204-base ;;
        *) die "no image is known for --type $1; name one with --image" ;;
    esac
}

# Builds the environment of a TPU VM in the tree that is the current folder. The images
# bring an older Python than pclseg needs, so uv fetches one.
build_tpu_venv() {
    local version=3.12 python=PYTHON
    run_with_retry python3 -m pip install --quiet --user uv
    run_with_retry python3 -m uv python install "$version"
    if [[ $dry_run == no ]]; then
        python=$(python3 -m uv python find "$version")
    fi
    run_with_retry make venv EXTRA=tpu VENV=.venv-tpu "PYTHON=$python"
}

# Checks the --workdir and the arguments of pclseg.main of a queued TPU.
check_job() {
    local argument
    [[ $1 == gs://?*/?* ]] || die "--workdir is '$1'; expected gs://BUCKET/FOLDER"
    [[ $# -gt 1 ]] || die "nothing to run: give the arguments of pclseg.main after --"
    for argument in "${@:2}"; do
        case $argument in
            --workdir* | --coordinator* | --stopped_status*)
                die "$argument comes from the script; leave it out after --" ;;
        esac
    done
}

# A number by which a finished run is known: that of its arguments.
job_of() {
    printf '%s\n' "$@" | cksum | cut -d ' ' -f 1
}

# Whether a list of objects has finished-0-of-N to finished-(N-1)-of-N for some N.
all_finished() {
    sed -nE 's|.*/finished-[0-9]+-of-([0-9]+)$|\1|p' <<<"$1" | sort | uniq -c |
        awk '$1 == $2 { found = 1 } END { exit !found }'
}
