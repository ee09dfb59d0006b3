#!/usr/bin/env bash
# Trains on GKE's TPU slices by launch/jobset.yaml, whose comment says what the cluster must have.
#
# usage: launch/gke.sh COMMAND [option ...] [-- field ...]
#
#   apply    creates the JobSet; does nothing if it exists
#   logs     follows the first host's log
#   status   the JobSet's state and its Pods
#   delete   deletes the JobSet; asks first. Pods have 5 minutes to save
#
#   --name NAME          default toolrm-14b
#   --namespace NAME     default: kubectl's own
#   --topology T         of the node pool, as the planner writes it; default v5p:2x2x4
#   --slices N           default 1
#   --image IMAGE        as launch/image.sh built and pushed it; needed by apply
#   --config FILE        in the image; default configs/14b.py
#   --workdir DIR        gs://bucket/folder; needed by apply
#   --restarts N         after failures other than preemption; default 3
#   --service-account A  Kubernetes service account of the Pods; default default
#   --spot               on Spot nodes only
#   --yes                do not ask
#   --dry-run            print the JobSet and the commands, and do nothing
#   -- field ...         for the training: --config.data.train=gs://bucket/train.jsonl
#
# Predicted (toolrm_jax.plan, configs/14b.py on v5p:2x2x4): 36.8 of 95 GiB a chip; 0.76 to 1.17
# hours an epoch of 180,000 pairs, 65,600 to 42,600 tokens/s. On v5e:4x8 and v6e:4x4 its plan
# is with --config.model.remat=full (docs/plan.md).
#
# example: launch/gke.sh apply --image us-docker.pkg.dev/project/rm/toolrm:tpu --workdir gs://b/rm \
#   -- --config.data.train=gs://b/train.jsonl --config.data.heldout=gs://b/heldout.jsonl
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/commands.sh
source "$here/commands.sh"

name=toolrm-14b namespace="" topology=v5p:2x2x4 slices=1 image="" config=configs/14b.py workdir=""
restarts=3 service_account=default spot=false fields=()

read_options() {
    while (($#)); do
        case $1 in
        --name) name=$(value_of "$@") && shift ;;
        --namespace) namespace=$(value_of "$@") && shift ;;
        --topology) topology=$(value_of "$@") && shift ;;
        --slices) slices=$(value_of "$@") && shift ;;
        --image) image=$(value_of "$@") && shift ;;
        --config) config=$(value_of "$@") && shift ;;
        --workdir) workdir=$(value_of "$@") && shift ;;
        --restarts) restarts=$(value_of "$@") && shift ;;
        --service-account) service_account=$(value_of "$@") && shift ;;
        --spot) spot=true ;;
        --yes) yes=true ;;
        --dry-run) dry_run=true ;;
        --help | -h) show_help "$here/gke.sh" && exit 0 ;;
        --) shift && fields=("$@") && return ;;
        *) die "unknown option '$1'; see --help" ;;
        esac
        shift
    done
}

check_options() {
    plain name "$name" && plain image "$image" && plain config "$config"
    plain workdir "$workdir" && plain service-account "$service_account"
    [[ $slices =~ ^[1-9][0-9]*$ ]] || die "--slices '$slices': expected a number from 1"
    [[ $restarts =~ ^[0-9]+$ ]] || die "--restarts '$restarts': expected a number from 0"
    read_topology "$topology"
    # shellcheck disable=SC2154  # chip, chips: set by read_topology
    case $chip in
    v4) accelerator=tpu-v4-podslice ;;
    v5p) accelerator=tpu-v5p-slice ;;
    v5e) accelerator=tpu-v5-lite-podslice ;;
    v6e) accelerator=tpu-v6e-slice ;;
    esac
    ((chips % 4 == 0)) || die "--topology '$topology': $chips chips; hosts have 4 each"
    where=()
    if [[ -n $namespace ]]; then where=(--namespace "$namespace"); fi
}

# jobset.yaml with the options in their marked lines, and all else as it stands there.
jobset() {
    # shellcheck disable=SC2154  # shape: set by read_topology
    local set=(
        "name=$name" "restarts=$restarts" "slices=$slices" "image=$image" "config=$config"
        "workdir=$workdir" "service-account=$service_account"
    ) edits=() pair
    for pair in "${set[@]}"; do
        edits+=(-e "s|: [^ ]*\\(  # --${pair%%=*}\\)\$|: ${pair#*=}\\1|")
    done
    edits+=(-e "s|: [^ ]*\\(  # hosts of a slice\\)\$|: $((chips / 4))\\1|")
    edits+=(-e "s|: [^ ]*\\(  # chip\\)\$|: $accelerator\\1|")
    edits+=(-e "s|: [^ ]*\\(  # shape\\)\$|: $shape\\1|")
    if "$spot"; then edits+=(-e 's|# For Spot nodes: \(.*\)$|\1|'); fi
    sed "${edits[@]}" "$here/jobset.yaml" | with_fields
}

# The lines of a JobSet, and the fields as arguments where the comment about them stands.
with_fields() {
    local line field
    while IFS= read -r line; do
        printf '%s\n' "$line"
        if [[ $line != *"# Fields of the config"* ]]; then continue; fi
        for field in "${fields[@]}"; do
            field=${field//\\/\\\\} field=${field//\"/\\\"}
            # Kubernetes puts a variable's value for $(NAME), and one dollar for two.
            printf '%*s- "%s"\n' 20 "" "${field//\$/\$\$}"
        done
    done
}

apply() {
    need image "$image"
    need workdir "$workdir"
    complete_fields "$slices" "$config" "$chip"
    if "$dry_run"; then
        jobset
    elif [[ -n $(kubectl get jobset "$name" "${where[@]}" --ignore-not-found --output name) ]]; then
        say "JobSet $name exists: not created again; delete it to start it with other options"
        return
    fi
    act kubectl apply "${where[@]}" --filename - < <(jobset)
}

logs() {
    act kubectl logs "${where[@]}" --follow --tail 200 --selector \
        "jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
}

status() {
    act kubectl get jobset "$name" "${where[@]}"
    act kubectl get pods "${where[@]}" --output wide --selector "jobset.sigs.k8s.io/jobset-name=$name"
}

delete() {
    confirm "Delete the JobSet $name? Its Pods save and end; the workdir stays."
    act kubectl delete jobset "$name" "${where[@]}" --ignore-not-found
}

main() {
    local command=${1:---help}
    case $command in
    --help | -h) show_help "$here/gke.sh" && exit 0 ;;
    apply | logs | status | delete) ;;
    *) die "unknown command '$command'; see --help" ;;
    esac
    read_options "${@:2}"
    check_options
    "$dry_run" || [[ $(type -P kubectl) ]] || die "kubectl is not on PATH"
    "$command"
}

main "$@"
