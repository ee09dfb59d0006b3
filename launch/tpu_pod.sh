#!/usr/bin/env bash
# Trains on a TPU pod slice (or several) of Cloud TPU VMs, through a queued resource.
#
# usage: launch/tpu_pod.sh COMMAND --name NAME --zone ZONE [option ...] [-- field ...]
#
#   up       create, setup, run and watch; where the slice is preempted, all of it again
#   create   asks for the slice and waits for it; does nothing if it exists
#   setup    copies this repository's last commit to every host and installs it there; leaves a
#            host as it is where training runs
#   run      starts training on every host, in the background; does nothing where it runs
#   watch    waits until training has ended (exit status: that of the training)
#   logs     follows the first host's log; Ctrl-C ends the following, not the training
#   status   the slice's state and what every host says
#   stop     asks training to save and end (SIGTERM on every host); the slice stays
#   delete   deletes the slice; asks first
#
#   --name NAME          of the queued resource and its nodes
#   --zone ZONE          such as us-east5-a
#   --project PROJECT    default: gcloud's own
#   --topology T         as the planner writes it; default v5p:2x2x4
#   --slices N           several slices, joined over the data-centre network; default 1
#   --runtime VERSION    of the VMs' software; default by chip
#   --spot               cheaper, and may be preempted at any time
#   --service-account A  that the VMs act as: needs to read and write the workdir's bucket
#   --internal-ip        reach the hosts by their internal addresses
#   --config FILE        default configs/14b.py
#   --workdir DIR        gs://bucket/folder; needed by run and up
#   --restarts N         after a crash, or a lost slice (up); default 3. A preempted training
#                        (exit status 75) is started again without counting
#   --yes                do not ask
#   --dry-run            print what would be done, and do nothing
#   -- field ...         for the training: --config.train.steps=100
#
# HF_TOKEN, where it is set here, is copied to the hosts as a file that only its owner reads; it
# stands in no command line and no log. Data and weights may be gs:// paths.
#
# Predicted (toolrm_jax.plan, configs/14b.py on v5p:2x2x4): 36.8 of 95 GiB a chip; 0.76 to 1.17
# hours an epoch of 180,000 pairs, 65,600 to 42,600 tokens/s. On v5e:4x8 and v6e:4x4 its plan
# is with --config.model.remat=full (docs/plan.md).
#
# example: launch/tpu_pod.sh up --name rm --zone us-east5-a --spot --workdir gs://b/rm \
#   -- --config.data.train=gs://b/train.jsonl --config.data.heldout=gs://b/heldout.jsonl
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/commands.sh
source "$here/commands.sh"

readonly poll_seconds=${TOOLRM_POLL_SECONDS:-30}
name="" zone="" project="" topology=v5p:2x2x4 slices=1 runtime="" service_account=""
spot=false internal_ip=false config=configs/14b.py workdir="" restarts=3 fields=()

read_options() {
    while (($#)); do
        case $1 in
        --name) name=$(value_of "$@") && shift ;;
        --zone) zone=$(value_of "$@") && shift ;;
        --project) project=$(value_of "$@") && shift ;;
        --topology) topology=$(value_of "$@") && shift ;;
        --slices) slices=$(value_of "$@") && shift ;;
        --runtime) runtime=$(value_of "$@") && shift ;;
        --service-account) service_account=$(value_of "$@") && shift ;;
        --config) config=$(value_of "$@") && shift ;;
        --workdir) workdir=$(value_of "$@") && shift ;;
        --restarts) restarts=$(value_of "$@") && shift ;;
        --spot) spot=true ;;
        --internal-ip) internal_ip=true ;;
        --yes) yes=true ;;
        --dry-run) dry_run=true ;;
        --help | -h) show_help "$here/tpu_pod.sh" && exit 0 ;;
        --) shift && fields=("$@") && return ;;
        *) die "unknown option '$1'; see --help" ;;
        esac
        shift
    done
}

check_options() {
    need name "$name" && need zone "$zone"
    plain name "$name" && plain zone "$zone" && plain project "$project"
    plain config "$config" && plain workdir "$workdir"
    [[ $slices =~ ^[1-9][0-9]*$ ]] || die "--slices '$slices': expected a number from 1"
    [[ $restarts =~ ^[0-9]+$ ]] || die "--restarts '$restarts': expected a number from 0"
    read_topology "$topology"
    # shellcheck disable=SC2154  # chip, chips: set by read_topology
    case $chip in # accelerator types count TensorCores where a chip has two, and chips elsewhere
    v4) accelerator=v4-$((2 * chips)) version=tpu-ubuntu2204-base ;;
    v5p) accelerator=v5p-$((2 * chips)) version=v2-alpha-tpuv5 ;;
    v5e) accelerator=v5litepod-$chips version=v2-alpha-tpuv5-lite ;;
    v6e) accelerator=v6e-$chips version=v2-alpha-tpuv6e ;;
    esac
    runtime=${runtime:-$version}
    where=(--zone "$zone")
    if [[ -n $project ]]; then where+=(--project "$project"); fi
}

# --- The slice -------------------------------------------------------------------------------------

resources() { # resources VERB ...: a command of gcloud on this queued resource
    local verb=$1
    shift
    act gcloud compute tpus queued-resources "$verb" "$name" "${where[@]}" "$@"
}

# ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; ABSENT if there is none. A question that fails is
# no answer: nothing may be created or taken for lost because of it.
state() {
    local listed found said
    listed=$(gcloud compute tpus queued-resources list "${where[@]}" \
        --format "value(name.basename(),state.state)") || die "gcloud cannot list queued resources"
    while read -r found said; do
        if [[ $found == "$name" ]]; then printf '%s' "$said" && return; fi
    done <<<"$listed"
    printf ABSENT
}

create() {
    local found=ABSENT
    "$dry_run" || found=$(state)
    if [[ $found == ABSENT ]]; then
        local nodes=(--node-id "$name") more=()
        if ((slices > 1)); then nodes=(--node-count "$slices" --node-prefix "$name"); fi
        if "$spot"; then more+=(--spot); fi
        if [[ -n $service_account ]]; then
            more+=(--service-account "$service_account"
                --scopes https://www.googleapis.com/auth/cloud-platform)
        fi
        resources create "${nodes[@]}" --accelerator-type "$accelerator" \
            --runtime-version "$runtime" "${more[@]}"
    else
        say "$name exists ($found): not created again"
    fi
    "$dry_run" || wait_until_active
}

wait_until_active() {
    local found last=""
    while true; do
        found=$(state)
        case $found in
        ACTIVE) return ;;
        ABSENT | FAILED | SUSPENDING | SUSPENDED | DELETING)
            die "$name is $found, not ACTIVE; 'delete' it, then 'create' it again" ;;
        esac
        if [[ $found != "$last" ]]; then say "$name: $found"; fi
        last=$found
        sleep "$poll_seconds"
    done
}

delete() {
    confirm "Delete the queued resource $name in $zone and its TPU VMs?"
    local found=unknown
    "$dry_run" || found=$(state)
    if [[ $found == ABSENT ]]; then
        say "$name does not exist: nothing to delete"
        return
    fi
    resources delete --force --quiet
}

# --- Its hosts -------------------------------------------------------------------------------------

on_hosts() { # on_hosts WORKER COMMAND: WORKER is a number or all
    local more=()
    if "$internal_ip"; then more+=(--internal-ip); fi
    resources ssh --node="$([[ $1 == all ]] && echo all || echo 0)" --worker="$1" "${more[@]}" \
        --command "$2"
}

copy_to_hosts() { # copy_to_hosts FILE NAME
    local more=()
    if "$internal_ip"; then more+=(--internal-ip); fi
    act gcloud compute tpus queued-resources scp "$1" "$name:$2" "${where[@]}" \
        --node=all --worker=all "${more[@]}"
}

setup() {
    local scratch
    scratch=$(mktemp -d)
    # shellcheck disable=SC2064  # expanded now: the variable is local
    trap "rm -rf -- '$scratch'" EXIT
    act git -C "$here/.." archive --format=tar.gz --output "$scratch/toolrm_jax.tar.gz" HEAD
    copy_to_hosts "$scratch/toolrm_jax.tar.gz" toolrm_jax.tar.gz
    if [[ -n ${HF_TOKEN:-} ]]; then
        "$dry_run" || (umask 077 && printf 'HF_TOKEN=%q\nexport HF_TOKEN\n' "$HF_TOKEN" >"$scratch/secrets")
        copy_to_hosts "$scratch/secrets" .toolrm_secrets
    fi
    # A folder of its own, so that no file of an earlier commit stays; never under a training.
    on_hosts all "if ! flock --nonblock .toolrm_lock true; then echo 'training is running: left as it is'; exit 0; fi; rm -rf toolrm_jax && mkdir toolrm_jax && tar -xzf toolrm_jax.tar.gz -C toolrm_jax && bash toolrm_jax/launch/tpu_host.sh install"
    rm -rf -- "$scratch"
    trap - EXIT
}

run() {
    need workdir "$workdir"
    local training=""
    complete_fields "$slices" "$config" "$chip"
    # Where Google's metadata does not answer, a host must not go on alone.
    printf -v training ' %q' --distributed=on --config "$config" --workdir "$workdir" "${fields[@]}"
    on_hosts all "bash toolrm_jax/launch/tpu_host.sh start --restarts $restarts --$training"
}

watch() {
    if "$dry_run"; then
        on_hosts 0 "bash toolrm_jax/launch/tpu_host.sh state"
        return
    fi
    local said found
    while true; do
        sleep "$poll_seconds"
        found=$(state) || continue
        if [[ $found != ACTIVE ]]; then return 75; fi # the slice was taken away
        # The answer stands in the last line; a host that does not answer is asked again.
        said=$(on_hosts 0 "bash toolrm_jax/launch/tpu_host.sh state" | tail -n 1) || continue
        if [[ $said =~ ^ended\ ([0-9]+)$ ]]; then return "${BASH_REMATCH[1]}"; fi
    done
}

# Whether training on a host was killed, as by a restart for maintenance.
training_was_killed() {
    local said
    said=$(on_hosts all "bash toolrm_jax/launch/tpu_host.sh state") || true
    [[ $said == *"ended 137"* ]]
}

up() {
    need workdir "$workdir"
    local tried begun ended found
    for ((tried = 0; tried <= restarts; tried++)); do
        if ((tried > 0)); then again "$tried"; fi
        # In a shell of its own, which the first failure ends: the slice may go at any moment.
        set +e
        (
            set -e
            create
            setup
            run
        )
        begun=$?
        set -e
        if "$dry_run"; then watch && return; fi
        ended=$begun
        if ((begun == 0)); then
            watch && say "training has ended; '$0 delete' frees the slice" && return
            ended=$?
        fi
        until found=$(state); do sleep "$poll_seconds"; done
        if [[ $found == ACTIVE ]] && ! training_was_killed; then
            if ((begun == 0)); then say "training ended with status $ended; see '$0 logs'"; fi
            say "$name is still there: '$0 delete' frees it"
            exit "$ended"
        fi
        if [[ $found == ABSENT ]]; then # it could not be created, or somebody deleted it
            say "$name does not exist"
            exit "$ended"
        fi
    done
    die "$name was lost $tried times; training can be continued by the same command"
}

again() { # again TRIED: on the same slice, or on another one if it was taken away
    local found
    found=$(state)
    while [[ $found == SUSPENDING ]]; do # not deletable yet
        sleep "$poll_seconds"
        found=$(state)
    done
    if [[ $found == ACTIVE ]]; then
        say "training was killed on a host of $name: it is started again ($1 of $restarts)"
    else
        say "$name was taken away: asking for another one ($1 of $restarts)"
        yes=true
        delete
    fi
}

main() {
    local command=${1:---help}
    case $command in
    --help | -h) show_help "$here/tpu_pod.sh" && exit 0 ;;
    up | create | setup | run | watch | logs | status | stop | delete) ;;
    *) die "unknown command '$command'; see --help" ;;
    esac
    read_options "${@:2}"
    check_options
    "$dry_run" || [[ $(type -P gcloud) ]] || die "gcloud is not on PATH; install Google Cloud's SDK"
    case $command in
    logs) on_hosts 0 "tail -n 200 -F toolrm_train.log" ;;
    stop) on_hosts all "bash toolrm_jax/launch/tpu_host.sh stop" ;;
    status)
        resources describe --format "value(state.state)"
        on_hosts all "bash toolrm_jax/launch/tpu_host.sh state"
        ;;
    *) "$command" ;;
    esac
}

main "$@"
