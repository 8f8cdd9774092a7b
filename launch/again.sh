#!/usr/bin/env bash
# Runs a command, and starts it again when the way it ended asks for that.
#
#   ./launch/again.sh COMMAND [ARGUMENT...]
#
# Again after 75 (stopped by the watchdog, or another process of the job is gone), after 134 (JAX aborts the others when
# process 0 dies) and after death by any other signal. Not after 0, 1, 2 or anything else: the same command would end
# the same way. SIGTERM and SIGINT are passed on as SIGTERM, and what the command ends with then is the end. The exit
# status is the command's last one.
#
# Each host of a job decides for itself. Where process 0 has stopped for good, the others start again, and JAX aborts
# them after five minutes without a coordinator. So ten lives in a row of less than ten minutes each are the last. The
# pauses between them grow, to 21 minutes in all: a host that comes back early must outlast the watchdogs of the others
# (15 minutes), which may not have noticed yet that it was gone. And a hundred lives in all are the last: what hangs at
# every start must not hold its machines for ever.
set -u

if [ $# = 0 ]; then
    echo "error: which command? ./launch/again.sh COMMAND [ARGUMENT...]" >&2
    exit 2
fi

say() {
    printf '%(%F %T)T again.sh: %s\n' -1 "$*" >&2
}

child=
is_asked= # to stop
# shellcheck disable=SC2317,SC2329 # the trap calls it
pass_on() {
    if [ -z "$is_asked" ]; then # once: a second SIGTERM would cut the saving of the checkpoint short
        is_asked=1
        [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
    fi
}
trap pass_on TERM INT

# Runs a command in a process group of its own, so that a terminal's Ctrl-C comes to it once, from here.
run() {
    setsid "$@" &
    child=$!
    [ -z "$is_asked" ] || kill -TERM "$child" # asked between these lines
    while kill -0 "$child" 2>/dev/null; do
        wait "$child" # a signal to this script ends it early
    done
    wait "$child"
    status=$?
    child=
}

short=0
lives=0
while true; do
    lives=$((lives + 1))
    began=$(date +%s)
    run "$@"
    if [ -n "$is_asked" ]; then
        say "asked to stop; the command ended with status $status"
        break
    elif [ "$status" != 75 ] && { [ "$status" -le 128 ] || [ "$status" -gt 192 ]; }; then
        say "the command ended with status $status and is not started again"
        break
    fi

    if [ $(($(date +%s) - began)) -ge 600 ]; then short=0; fi
    short=$((short + 1))
    if [ $short = 10 ]; then
        say "the command ended with status $status, as ten short lives in a row did, and is not started again"
        break
    fi
    if [ $lives = 100 ]; then
        say "the command ended with status $status for the hundredth time, and is not started again"
        break
    fi
    pause=$((10 << (short - 1)))
    if [ $pause -gt 240 ]; then pause=240; fi # not as long as the others wait for this host
    say "the command ended with status $status and is started again in $pause s"
    last=$status
    run sleep "$pause"
    status=$last
    if [ -n "$is_asked" ]; then
        say "asked to stop; the command had ended with status $status"
        break
    fi
done
exit "$status"
