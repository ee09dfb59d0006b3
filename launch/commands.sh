# shellcheck shell=bash
# What the launch scripts share: running or only showing a command, and reading topologies.
#
#   dry_run=true; act gcloud compute tpus ...      prints "+ gcloud compute tpus ..."
#   dry_run=false; act gcloud compute tpus ...     prints the same line, then runs it
#
# Source this file; it does nothing on its own.

dry_run=false yes=false

say() { printf '%s\n' "$*" >&2; }

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

# The comment at the top of a script, as its help.
show_help() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$1"; }

# The value of an option, which must not be missing: value=$(value_of "$@")
value_of() {
    (($# >= 2)) && [[ $2 != --* ]] || die "$1 needs a value; see --help"
    printf '%s' "$2"
}

need() { # need NAME "$value"
    [[ -n $2 ]] || die "--$1 is missing; see --help"
}

# Names and paths go into commands for other machines and into YAML: nothing that a shell or YAML
# would read as more than a word.
plain() { # plain OPTION "$value"
    [[ $2 =~ ^[A-Za-z0-9@%+=:,./_-]*$ ]] || die "--$1 '$2': expected letters, digits and @%+=:,./_-"
}

# Asks before something is lost; --yes answers.
confirm() { # confirm "Delete X?"
    if "$yes" || "$dry_run"; then return; fi
    local answer=""
    read -r -p "$1 [y/N] " answer || true
    [[ $answer == [yY] ]] || die "not confirmed; nothing was changed"
}

# A topology as the planner writes it, v5p:2x2x4, as chip=v5p shape=2x2x4 chips=16.
read_topology() { # read_topology v5p:2x2x4
    [[ $1 =~ ^(v4|v5e|v5p|v6e):([0-9]+)x([0-9]+)(x([0-9]+))?$ ]] ||
        die "--topology '$1': expected v4, v5e, v5p or v6e and a shape, such as v5p:2x2x4 or v6e:4x4"
    # shellcheck disable=SC2034  # read by the scripts that source this
    chip=${BASH_REMATCH[1]} shape=${1#*:}
    # shellcheck disable=SC2034
    chips=$((BASH_REMATCH[2] * BASH_REMATCH[3] * ${BASH_REMATCH[5]:-1}))
}

# Adds what follows from the options to the fields for training, unless a field says otherwise.
complete_fields() { # complete_fields SLICES CONFIG CHIP; changes the array `fields`
    local given=" ${fields[*]} "
    given=${given//=/ }
    # Between slices the gradients alone should travel, not the weights as well.
    if (($1 > 1)) && [[ $given != *" --config.mesh.data "* ]]; then
        fields+=("--config.mesh.data=$1")
    fi
    if [[ $given != *" --config.data.train "* ]]; then
        say "note: no --config.data.train=... after --: what $2 names must be on the hosts"
    fi
    # Said, not set: a run that goes on with another remat adds in another order (docs/train.md).
    if [[ $3 == v[56]e && $given != *" --config.model.remat "* ]]; then
        say "note: no --config.model.remat=... after --: the plan on $3 is with --config.model.remat=full"
    fi
}
