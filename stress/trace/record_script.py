"""The shell script of `stress trace record`, with holes for what differs from level to level."""

from __future__ import annotations

from typing import Final

TEMPLATE: Final = r"""#!/bin/sh
# Record what KVM's TDP MMU does, for `stress trace check`. Level {level}{made_for}: {what}.
# With it `check` can judge: {judges}.
#
# Read it, then run it as root. It works in a trace instance of its own, changes no other
# tracing, and takes everything
# down again when it ends (Ctrl-C included).
#
#   sh record.sh -o vm.trace -- qemu-system-x86_64 ...     record a VM from its start (best)
#   sh record.sh -o vm.trace -p PID -t 30                  record a running VM for 30 s
#
# Without -p and without a command it records every VM on the machine until Ctrl-C.
# shellcheck disable=SC2016  # $retval is for the kernel, not for the shell
set -eu

with_statistics={statistics}
out=vm.trace
pid=
seconds=
while getopts o:p:t: option; do
    case $option in
    o) out=$OPTARG ;;
    p) pid=$OPTARG ;;
    t) seconds=$OPTARG ;;
    *) echo "usage: $0 [-o FILE] [-p PID] [-t SECONDS] [-- COMMAND ...]" >&2; exit 4 ;;
    esac
done
shift $((OPTIND - 1))

[ "$(id -u)" = 0 ] || {{ echo "$0: must run as root" >&2; exit 4; }}
tracing=/sys/kernel/tracing
[ -e "$tracing/kprobe_events" ] || tracing=/sys/kernel/debug/tracing
[ -e "$tracing/kprobe_events" ] || {{
    echo "$0: no tracefs with kprobe events; try: mount -t tracefs nodev /sys/kernel/tracing" >&2
    exit 4
}}
instance=$tracing/instances/tdp-stress
release=$(uname -r)
sampler=

probe() {{
    # Try the definitions in turn: with the kernel's own types first, then with registers; `@6.1` is
    # for that kernel only.
    for definition in "$@"; do
        case $definition in
        @*)
            version=${{definition%% *}}
            case $release in "${{version#@}}".*) ;; *) continue ;; esac
            definition=${{definition#* }}
            ;;
        esac
        if echo "$definition" >>"$tracing/kprobe_events" 2>/dev/null; then
            return 0
        fi
    done
    echo "left out (this kernel does not have it, or has inlined it): $1" >&2
}}

put() {{
    # Write a setting that some kernels do not have.
    if [ -e "$instance/$1" ]; then
        echo "$2" >"$instance/$1" || echo "cannot set $1 to $2" >&2
    fi
}}

statistics() {{
    # KVM's own counts, which `check` compares with what it has counted between the two markers.
    for directory in /sys/kernel/debug/kvm/*-*; do
        [ -r "$directory/pages_4k" ] || continue
        of=${{directory##*/}}
        of=${{of%%-*}}
        [ -z "$pid" ] || [ "$pid" = "$of" ] || continue
        set -- /sys/kernel/debug/kvm/"$of"-*
        [ $# = 1 ] || continue # of two VMs of a process, events do not say which is which
        echo "statistics of $of begin" >"$instance/trace_marker"
        values=
        for name in pages_4k pages_2m pages_1g; do
            value=
            read -r value <"$directory/$name" || true
            [ -z "$value" ] || values="$values $name=$value"
        done 2>/dev/null
        echo "statistics of $of end$values" >"$instance/trace_marker"
    done
}}

sample() {{
    trap - EXIT INT TERM
    while sleep 0.1 2>/dev/null || sleep 1; do
        statistics
    done
}}

stop_sampling() {{
    if [ -n "$sampler" ]; then
        kill "$sampler" 2>/dev/null || true
        wait "$sampler" 2>/dev/null || true
        sampler=
    fi
}}

teardown() {{
    trap - EXIT INT TERM
    stop_sampling
    if [ -d "$instance" ]; then
        put tracing_on 0
        put current_tracer nop
        put events/enable 0
        rmdir "$instance" || true
    fi
    # Only the probes made above; in reverse, as the kernel asks for.
    grep -o 'tdp_stress/[^ ]*' "$tracing/kprobe_events" 2>/dev/null | while read -r name; do
        echo "-:$name" >>"$tracing/kprobe_events" || true
    done
}}

save() {{
    put tracing_on 0
    cat "$instance/trace" >"$out"
    echo "recorded: $(grep -c '' "$out") lines in $out; now: stress trace check $out" >&2
}}

setup() {{
    mkdir -p "$instance"
    put tracing_on 0
    put buffer_size_kb {buffer_kb}
    put trace_clock counter            # one number per event: one order over all CPUs
    put options/irq-info 1
    put options/record-tgid 0
    put trace ''
{probes}
    for event in {events}; do
        put "events/$event/enable" 1
    done
    put events/tdp_stress/enable 1
    functions='{functions}'
    if [ -n "$functions" ]; then
        # By their numbers in the list of all: each name costs the kernel a walk over the list.
        numbers=$(awk -v wanted="$functions" '
            BEGIN {{ split(wanted, names, " "); for (each in names) want[names[each]] = 1 }}
            $1 in want {{ printf "%d ", NR }}' "$tracing/available_filter_functions")
        echo "$numbers" >"$instance/set_ftrace_filter"
        put current_tracer function
    fi
}}

only() {{
    # This process and its threads; what the kernel's own threads do for it (RCU, NX recovery)
    # stays unrecorded.
    put options/event-fork 1
    put options/function-fork 1
    for task in /proc/"$1"/task/*; do
        echo "${{task##*/}}" >>"$instance/set_event_pid"
        echo "${{task##*/}}" >>"$instance/set_ftrace_pid" 2>/dev/null || true
    done
}}

code=0
trap teardown EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
setup
if [ -n "$pid" ]; then
    only "$pid"
fi
put tracing_on 1
if [ "$with_statistics" = 1 ]; then
    sample &
    sampler=$!
fi
if [ $# -gt 0 ]; then
    "$@" || code=$?
    sleep 1 # RCU callbacks free the last page tables after their VM is gone
else
    if [ -n "$seconds" ]; then
        sleep "$seconds"
    else
        echo "recording; Ctrl-C ends it" >&2
        trap 'echo >&2' INT
        sleep 2147483647 || true
        trap 'exit 130' INT
    fi
fi
stop_sampling
save
exit "$code"
"""
