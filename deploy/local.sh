#!/bin/sh
# Starts or stops a Ray cluster on this machine, for `raybasin submit`: it listens on loopback alone, and asks for a token.
#
#   deploy/local.sh start [RAY-START-OPTION...]      PORT=6379 DASHBOARD_PORT=8265 in the environment name its ports
#   deploy/local.sh stop
#
# `ray stop` would end every cluster of yours on this machine, those of running sweeps too; this ends its own alone.
set -eu
umask 077 # the token and the log are for you alone
: "${PORT:=6379}" "${DASHBOARD_PORT:=8265}" "${RAY:=.venv/bin/ray}"
state=.cluster

runs() {
    [ -f $state/pid ] && ps -o args= -p "$(cat $state/pid)" | grep -q "ray start --head"
}

case "${1:-}" in
start)
    shift
    if runs; then echo "the cluster of this folder runs already; make cluster-stop ends it"; exit; fi
    mkdir -p $state
    export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}" RAY_JOB_STOP_WAIT_TIME_S="${RAY_JOB_STOP_WAIT_TIME_S:-30}"
    export RAY_TRAIN_ENABLE_STATE_TRACKING="${RAY_TRAIN_ENABLE_STATE_TRACKING:-1}" # or Ray knows nothing of Train's runs
    export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # else its end waits half a minute for a sweep that goes on
    export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 # without it Ray listens on all interfaces, whatever address is named
    "$RAY" get-auth-token --generate > /dev/null 2> $state/log || { cat $state/log; exit 1; }
    [ ! -O "$HOME/.ray/auth_token" ] || chmod 600 "$HOME/.ray/auth_token" # one that Ray has made is for all to read
    free='import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])'
    client=$("$(dirname "$RAY")/python" -c "$free")
    # With ports of their own two clusters may stand on one machine: without that of the client the second ends, without
    # that of the agent (0 is any) it takes no jobs.
    nohup "$RAY" start --head --block --disable-usage-stats --node-ip-address=127.0.0.1 --port="$PORT" \
        --dashboard-host=127.0.0.1 --dashboard-port="$DASHBOARD_PORT" --ray-client-server-port="$client" \
        --dashboard-agent-listen-port=0 "$@" > $state/log 2>&1 &
    echo $! > $state/pid
    until grep -q "Ray runtime started" $state/log; do
        if ! kill -0 $! 2> /dev/null; then
            tail -n 2 $state/log
            echo "Ray has not started ($state/log)."
            echo "Beside another cluster, and the address for \`make submit\`, too: PORT=6380 ADDRESS=http://127.0.0.1:8266"
            exit 1
        fi
        sleep 1
    done
    echo "a Ray cluster of this machine takes jobs at http://127.0.0.1:$DASHBOARD_PORT"
    ;;
stop)
    if ! runs; then echo "no cluster of this folder runs"; exit; fi
    pid=$(cat $state/pid)
    kill "$pid"
    while kill -0 "$pid" 2> /dev/null; do sleep 0.2; done
    echo "the cluster has ended"
    ;;
*)
    sed -n 's/^#   //p' "$0"
    exit 2
    ;;
esac
