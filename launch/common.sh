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

# Prints a command, quoted so that it can be pasted, and runs it unless --dry-run.
run() {
    printf '%q ' "$@" | sed 's/ $//'
    echo
    if [[ $dry_run == no ]]; then
        "$@"
    fi
}

# The same, tried again four times: a new machine refuses its first connections.
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
