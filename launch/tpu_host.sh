#!/usr/bin/env bash
# One host of a TPU slice: installs, starts, stops and describes the training there.
#
# usage: bash toolrm_jax/launch/tpu_host.sh install
#        bash toolrm_jax/launch/tpu_host.sh start [--restarts N] -- --config FILE --workdir DIR ...
#        bash toolrm_jax/launch/tpu_host.sh stop | state
#
# launch/tpu_pod.sh calls it on every host. In the home folder: .toolrm_venv/ (the installation),
# toolrm_train.log, .toolrm_state (`running`, or `ended STATUS`), .toolrm_secrets (HF_TOKEN).
# Training that ends with 75 (asked to stop, and saved) is started again; after another failure, 76
# among them (a process was lost, or a step hung), N times.
#
# Predicted (toolrm_jax.plan, configs/14b.py on v5p:2x2x4): 36.8 of 95 GiB a chip; 0.76 to 1.17
# hours an epoch of 180,000 pairs, 65,600 to 42,600 tokens/s.
set -euo pipefail

repository=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
readonly stopped=75 pause_seconds=${TOOLRM_PAUSE_SECONDS:-20}
readonly python=${TOOLRM_PYTHON:-$HOME/.toolrm_venv/bin/python}
readonly log=$HOME/toolrm_train.log state=$HOME/.toolrm_state lock=$HOME/.toolrm_lock
readonly pid_file=$HOME/.toolrm_pid stopping=$HOME/.toolrm_stopping

install() {
    # The VMs' own Python is 3.10, which is too old; uv brings one along.
    python3 -m pip install --user --quiet --upgrade uv
    python3 -m uv venv --quiet --clear --python 3.12 "$HOME/.toolrm_venv"
    python3 -m uv pip install --quiet --python "$python" "${repository}[tpu,gcs]"
    if [[ -f $HOME/.toolrm_secrets ]]; then chmod 600 "$HOME/.toolrm_secrets"; fi
    "$python" -c 'import gcsfs, toolrm_jax.train'
}

# In the background, and not ended with the connection that started it.
start() {
    exec 9>"$lock"
    if ! flock --nonblock 9; then
        echo "training is running already: not started again"
        return
    fi
    rm -f "$stopping"
    echo running >"$state"
    # The loop inherits the lock, and holds it as long as training goes on or may be started again.
    setsid nohup bash "$repository/launch/tpu_host.sh" loop "$@" >>"$log" 2>&1 </dev/null &
    echo "started; log: $log"
}

loop() {
    local restarts=3 tried=0 ended
    if [[ ${1:-} == --restarts ]]; then restarts=$2 && shift 2; fi
    if [[ ${1:-} == -- ]]; then shift; fi
    cd "$repository"
    if [[ -f $HOME/.toolrm_secrets ]]; then
        # shellcheck source=/dev/null
        source "$HOME/.toolrm_secrets"
    fi
    while true; do
        ended=0
        train "$@" || ended=$?
        if ((ended == 0)) || [[ -e $stopping ]]; then break; fi
        if ((ended != stopped)); then
            if ((tried >= restarts)); then break; fi
            tried=$((tried + 1))
        fi
        echo "training ended with status $ended: started again in $pause_seconds s"
        sleep "$pause_seconds"
        if [[ -e $stopping ]]; then break; fi
    done
    echo "training ended with status $ended"
    echo "ended $ended" >"$state.partial" && mv "$state.partial" "$state"
}

train() {
    "$python" -m toolrm_jax.train "$@" 9>&- &
    echo "$!" >"$pid_file"
    wait "$!"
}

stop() {
    touch "$stopping"
    if [[ -f $pid_file ]] && kill -TERM "$(<"$pid_file")" 2>/dev/null; then
        echo "asked to save and end"
    elif ! flock --nonblock "$lock" true; then
        echo "between two starts: it is not started again"
    else
        echo "nothing is running"
    fi
}

# `running` of a host that was restarted since is not so: nobody holds the lock.
state() {
    local said=never\ started
    if [[ -f $state ]]; then said=$(<"$state"); fi
    if [[ $said == running ]] && flock --nonblock "$lock" true; then said="ended 137"; fi
    echo "$said"
}

case ${1:---help} in
install | start | loop | stop | state) "$@" ;;
*) sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}" ;;
esac
