#!/usr/bin/env bash
# Trains on the hosts of a Cloud TPU slice, or of several slices, from your own machine.
#
#   ./launch/tpu_vm.sh create NAME TYPE [FLAG...]   asks for TPUs such as v5p-128 and waits until they are there. FLAGs
#                                                   go to gcloud: --spot, --reserved, --node-count=SLICES
#   ./launch/tpu_vm.sh run NAME COMMAND             a shell command on every host, to mount or to copy data
#   ./launch/tpu_vm.sh train NAME -- FLAG...        on every host, `python -m jpeglm.train FLAG...` of the commit that
#                                                   is checked out; a run that stands in the workdir goes on
#   ./launch/tpu_vm.sh status NAME                  of the TPUs, and of the training on each host
#   ./launch/tpu_vm.sh logs NAME [FLAG...]          the log of each host; FLAGs go to tail: -n 100, -f
#   ./launch/tpu_vm.sh stop NAME                    saves a checkpoint, and waits for it
#   ./launch/tpu_vm.sh delete NAME                  gives the TPUs back, with all that lies on their disks
#
# The training needs no connection to your machine. On each host launch/again.sh starts it again where that can help;
# of several hosts, the log of worker 0 tells how it went. TPUs that are taken away (spot) are gone with their hosts:
# the same `create` and `train` go on from the last checkpoint, so the workdir must be on gs://. After a host was
# restarted, `stop` and `train`.
#
# Needs gcloud with a project and a zone (`gcloud config set`, or CLOUDSDK_CORE_PROJECT and CLOUDSDK_COMPUTE_ZONE) and,
# for several hosts, its key in an agent: `ssh-add ~/.ssh/google_compute_engine`. TPU_SSH_FLAGS holds further flags of
# `gcloud compute tpus queued-resources ssh` and `scp`, such as --internal-ip, --tunnel-through-iap or, for more than 64
# hosts, --batch-size=all.
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit 2
}

################ On a host: functions that ssh takes along, in the host's home ################
# jpeglm/ is the code. jpeglm-run/ has the log, the id of again.sh, and a lock that again.sh and the training hold while
# they live: it needs no clearing up after a crash. gcloud runs a command again when its connection breaks, so each
# function may run twice.

host_is_running() { [ -e jpeglm-run/lock ] && ! flock --nonblock jpeglm-run/lock true; }

host_is_idle() { ! host_is_running; }

host_ask_to_stop() {
    if host_is_running; then kill -TERM "$(cat jpeglm-run/pid)"; fi
}

host_install() {
    set -euo pipefail
    host_ask_to_stop # where process 0 stopped for good, others may still wait for it
    mkdir -p jpeglm jpeglm-run
    flock --timeout 1500 jpeglm-run/lock true || { # it may be saving
        echo "error: $(hostname): what runs there does not end; kill it by \`run\`" >&2
        return 1
    }
    find jpeglm -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
    tar -xzf jpeglm.tar.gz -C jpeglm
    cd jpeglm
    # TPU VMs come with Python 3.10.
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        python3 -m pip install --quiet --user uv
        ~/.local/bin/uv python install --quiet 3.12
        PYTHON=$(~/.local/bin/uv python find 3.12)
    fi
    # shellcheck source=launch/env.sh
    source launch/env.sh requirements-tpu.txt
}

host_start() { # COMMIT FLAG...
    local run=$PWD/jpeglm-run
    cd jpeglm || return
    # shellcheck disable=SC2016
    # Whoever looks whether something runs holds the lock for a moment, too.
    setsid flock --timeout 10 "$run/lock" bash -c '
        echo $$ >"$1/pid"
        echo "== commit $2: ${*:3}"
        exec ./launch/again.sh .venv/bin/python -m jpeglm.train "${@:3}"
    ' start "$run" "$@" </dev/null >>"$run/log" 2>&1 &
}

host_tell() {
    local what="not running"
    if host_is_running; then what=running; fi
    echo "$(hostname): $what; $(tail -n 1 jpeglm-run/log 2>/dev/null)"
}

host_wait() {
    local is_late=0
    # A step that hangs is ended by the watchdog, after 15 minutes.
    [ ! -e jpeglm-run/lock ] || flock --timeout 1500 jpeglm-run/lock true || is_late=1
    host_tell
    return $is_late
}

host_log() { # FLAG...
    tail "$@" jpeglm-run/log | sed --unbuffered "s/^/$(hostname): /"
}

################ On your machine ################

# on NODE WORKER COMMAND...: a shell command, which may be a function of those above; NODE and WORKER may be all.
on() {
    local functions command
    functions=$(declare -f host_is_running host_is_idle host_ask_to_stop host_install host_start host_tell host_wait \
        host_log)
    command=$(printf "%q " "${@:3}")
    # shellcheck disable=SC2086
    "${queued[@]}" ssh "$name" --node="$1" --worker="$2" ${TPU_SSH_FLAGS-} --command="$functions"$'\n'"$command"
}

state() { "${queued[@]}" describe "$name" --format="value(state.state)"; }

create() {
    [ $# -gt 0 ] || fail "which TPUs? ./launch/tpu_vm.sh create NAME TYPE, with a TYPE such as v5p-128"
    local type=$1 flags=(--accelerator-type="$1" "${@:2}") found
    case " ${flags[*]}" in
    *" --runtime-version"*) ;;
    *)
        case $type in
        v2-* | v3-* | v4-*) flags+=(--runtime-version=tpu-ubuntu2204-base) ;;
        v5litepod-*) flags+=(--runtime-version=v2-alpha-tpuv5-lite) ;;
        v5p-*) flags+=(--runtime-version=v2-alpha-tpuv5) ;;
        v6e-*) flags+=(--runtime-version=v2-alpha-tpuv6e) ;;
        *) fail "no runtime version is known for TPUs of type '$type': add --runtime-version=VERSION" ;;
        esac
        ;;
    esac
    case " ${flags[*]}" in *" --node-count"*) ;; *) flags+=(--node-id="$name") ;; esac

    found=$(state 2>/dev/null) || found=
    case $found in
    SUSPENDED | FAILED) # its TPUs were taken away, or never came
        echo "$name: $found, asking again" >&2
        delete
        found=
        ;;
    esac
    [ -n "$found" ] || "${queued[@]}" create "$name" "${flags[@]}"
    while true; do # interrupted, the same command waits again
        found=$(state)
        echo "$name: $found" >&2
        case $found in
        ACTIVE) break ;;
        FAILED | SUSPENDING | SUSPENDED | DELETING)
            echo "error: the TPUs did not come; why: gcloud compute tpus queued-resources describe $name" >&2
            exit 1
            ;;
        esac
        sleep 30
    done
}

run() {
    [ $# = 1 ] || fail "one command, in quotes: ./launch/tpu_vm.sh run NAME 'COMMAND'"
    on all all eval "$1"
}

train() {
    [ "${1-}" = -- ] && [ $# -gt 1 ] || fail "which run? ./launch/tpu_vm.sh train NAME -- --config=... --workdir=..."
    local found commit
    found=$(state)
    [ "$found" = ACTIVE ] || fail "$name is $found, not ACTIVE: ./launch/tpu_vm.sh create $name TYPE"
    on 0 0 host_is_idle || fail "$name is training, or is out of reach: ./launch/tpu_vm.sh status $name"

    commit=$(git rev-parse HEAD)
    git diff --quiet HEAD || echo "changes that are not committed stay here" >&2
    # An archive, not a clone: hosts need no access to the repository.
    temporary=$(mktemp -d)
    trap 'rm -rf "$temporary"' EXIT
    git archive --format=tar.gz --output="$temporary/jpeglm.tar.gz" HEAD
    # shellcheck disable=SC2086
    "${queued[@]}" scp "$temporary/jpeglm.tar.gz" "$name:jpeglm.tar.gz" --node=all --worker=all ${TPU_SSH_FLAGS-}
    on all all host_install # everywhere before anything starts: processes wait five minutes for each other
    on all all host_start "$commit" "${@:2}" --config.platform=tpu
    echo "started; to watch: ./launch/tpu_vm.sh logs $name -f" >&2
}

status() {
    local found
    found=$(state)
    echo "$name: $found"
    [ "$found" != ACTIVE ] || on all all host_tell | sort
}

logs() { on all all host_log "$@"; }

stop() {
    on all all host_ask_to_stop
    on all all host_wait | sort
}

delete() { "${queued[@]}" delete "$name" --force --quiet; }

queued=(gcloud compute tpus queued-resources)
command=${1-}
case $command in
create | run | train | status | logs | stop | delete) ;;
*) fail "which of create, run, train, status, logs, stop and delete? The first lines of ${BASH_SOURCE[0]} tell more" ;;
esac
name=${2-}
[[ $name =~ ^[a-z][a-z0-9-]*$ ]] || fail "which TPUs? ./launch/tpu_vm.sh $command NAME, in a-z, 0-9 and hyphens"
case $command in status | stop | delete) [ $# = 2 ] || fail "unexpected argument '$3'" ;; esac
command -v gcloud >/dev/null || fail "gcloud is not installed"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
"$command" "${@:3}"
