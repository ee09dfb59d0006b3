#!/usr/bin/env bash
# Trains on GPU nodes under Slurm, one process a node, which drives all GPUs of its node.
#
# usage: launch/slurm.sh --workdir DIR [option ...] [-- field ...]
#
# Submits itself by sbatch. Inside an allocation (salloc) it starts training at once.
#
#   --workdir DIR        on a file system that all nodes share, or gs://; needed
#   --config FILE        default configs/14b.py
#   --nodes N            default 2
#   --gpus N             GPUs of a node; default 8
#   --time D-HH:MM:SS    default 1-00:00:00; at its end training saves, and the job goes on
#   --partition P        default: the cluster's
#   --account A, --qos Q default: yours; a preemptible QOS is the cluster's Spot
#   --name NAME          of the job; default toolrm
#   --grace S            seconds before the end of its time at which it saves; default 300
#   --restarts N         after a failure; default 3
#   --dry-run            print what would be done, and do nothing
#   -- field ...         for the training: --config.train.steps=100
#
# Training finds the other processes by srun's variables (toolrm_jax/cluster.py). Where it ends
# with 75 (preempted or out of time, and saved) or 143 (the same during start-up, with nothing to
# save yet) the job is put back into the queue and continues from its checkpoint; after a node
# failure Slurm does the same. So it is after any other failure (76: a process was lost, or a step
# hung) while the job has been put back fewer than --restarts times, for whatever reason.
# TOOLRM_PYTHON is the Python with toolrm_jax[cuda] (for gs:// [cuda,gcs]), the same path on all
# nodes; default .venv of this repository. HF_TOKEN is taken from the environment that submits.
#
# Predicted (toolrm_jax.plan, configs/14b.py on h100:2x8): 29.8 of 72.8 GiB a GPU; 0.39 to 0.56
# hours an epoch of 180,000 pairs, 128,700 to 89,700 tokens/s.
#
# example: launch/slurm.sh --workdir /shared/rm-14b --partition h100 --dry-run \
#   -- --config.data.train=/shared/train.jsonl --config.data.heldout=/shared/heldout.jsonl
set -euo pipefail

dry_run=false config=configs/14b.py workdir="" nodes=2 gpus=8 time=1-00:00:00 partition=""
account="" qos="" name=toolrm grace=300 restarts=3 repository=""
fields=()

die() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# Prints a command as it could be typed, and runs it unless this is a dry run.
act() {
    local line=""
    printf -v line ' %q' "$@"
    printf '+%s\n' "$line"
    "$dry_run" || "$@"
}

value_of() {
    (($# >= 2)) && [[ $2 != --* ]] || die "$1 needs a value; see --help"
    printf '%s' "$2"
}

read_options() {
    while (($#)); do
        case $1 in
        --workdir) workdir=$(value_of "$@") && shift ;;
        --config) config=$(value_of "$@") && shift ;;
        --nodes) nodes=$(value_of "$@") && shift ;;
        --gpus) gpus=$(value_of "$@") && shift ;;
        --time) time=$(value_of "$@") && shift ;;
        --partition) partition=$(value_of "$@") && shift ;;
        --account) account=$(value_of "$@") && shift ;;
        --qos) qos=$(value_of "$@") && shift ;;
        --name) name=$(value_of "$@") && shift ;;
        --grace) grace=$(value_of "$@") && shift ;;
        --restarts) restarts=$(value_of "$@") && shift ;;
        --repository) repository=$(value_of "$@") && shift ;; # of a submitted job alone
        --dry-run) dry_run=true ;;
        --help | -h) sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0" && exit 0 ;;
        --) shift && fields=("$@") && return ;;
        *) die "unknown option '$1'; see --help" ;;
        esac
        shift
    done
}

check_options() {
    [[ -n $workdir ]] || die "--workdir is missing; see --help"
    [[ $restarts =~ ^[0-9]+$ ]] || die "--restarts '$restarts': expected a number from 0"
    local number
    for number in "$nodes" "$gpus" "$grace"; do
        [[ $number =~ ^[1-9][0-9]*$ ]] || die "'$number': expected a number from 1; see --help"
    done
}

submit() {
    local more=()
    if [[ -n $partition ]]; then more+=(--partition "$partition"); fi
    if [[ -n $account ]]; then more+=(--account "$account"); fi
    if [[ -n $qos ]]; then more+=(--qos "$qos"); fi
    act mkdir -p "$home/runs/slurm" # Slurm starts no job whose log it cannot open
    # The signal goes to training itself, not to this script: it saves, and ends with 75. A job runs
    # a copy of this file, hence --repository.
    act sbatch --job-name "$name" --nodes "$nodes" --ntasks-per-node 1 --gpus-per-node "$gpus" \
        --exclusive --mem 0 --time "$time" --requeue --signal "TERM@$grace" --export ALL \
        --open-mode append --output "$home/runs/slurm/%x-%j.log" "${more[@]}" \
        "$home/launch/slurm.sh" --repository "$home" --workdir "$workdir" --config "$config" \
        --nodes "$nodes" --gpus "$gpus" --grace "$grace" \
        --restarts "$restarts" -- "${fields[@]}"
}

# One task a node, with all of its cores (Slurm would bind a task to one). A task that ends first,
# with whatever status, leaves the others time to end their part of a save, or to say that it never
# joined them (after 300 s): srun must not end them before, as 143 would then stand for a failure.
train() {
    act srun --nodes "$nodes" --ntasks "$nodes" --ntasks-per-node 1 --gpus-per-node "$gpus" \
        --cpu-bind none --kill-on-bad-exit=0 --wait "$((grace + 300))" --label \
        "$python" -m toolrm_jax.train --config "$config" --workdir "$workdir" "${fields[@]}"
}

goes_on() { # goes_on STATUS
    "$dry_run" || (($1 == 75 || $1 == 143)) || (($1 != 0 && ${SLURM_RESTART_COUNT:-0} < restarts))
}

run() {
    cd "$home"
    # What the planner takes as usable; JAX's own share is three quarters of the memory.
    export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
    trap : TERM # where a cluster signals this script, too, it must live to put the job back
    local ended=0
    train || ended=$?
    if [[ -n $repository ]] && goes_on "$ended"; then
        act scontrol requeue "${SLURM_JOB_ID:-JOB}" ||
            echo "the job is not put back by this script; Slurm may have done so itself" >&2
    fi
    exit "$ended"
}

read_options "$@"
check_options
home=${repository:-$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)}
python=${TOOLRM_PYTHON:-$home/.venv/bin/python}
if [[ -n ${SLURM_JOB_ID:-} ]]; then
    run
else
    submit
    if "$dry_run"; then
        repository=$home
        run
    fi
fi
