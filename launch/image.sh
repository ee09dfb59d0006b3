#!/usr/bin/env bash
# Builds the container image of launch/Dockerfile, and pushes it if asked.
#
# usage: launch/image.sh --tag IMAGE [--platform tpu|cuda] [--push] [--dry-run]
#
#   --tag IMAGE      such as us-docker.pkg.dev/project/rm/toolrm:tpu
#   --platform P     what JAX is installed for: tpu (the default) or cuda
#   --push           to the registry that the tag names
#   --dry-run        print what would be done, and do nothing
#
# Predicted (toolrm_jax.plan, configs/14b.py on v5p:2x2x4 and h100:2x8): v5p:2x2x4 (tpu),
# 0.76 to 1.17 hours an epoch of 180,000 pairs; h100:2x8 (cuda), 0.39 to 0.56.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/commands.sh
source "$here/commands.sh"

tag="" platform=tpu push=false
while (($#)); do
    case $1 in
    --tag) tag=$(value_of "$@") && shift ;;
    --platform) platform=$(value_of "$@") && shift ;;
    --push) push=true ;;
    --dry-run) dry_run=true ;;
    --help | -h) show_help "$here/image.sh" && exit 0 ;;
    *) die "unknown option '$1'; see --help" ;;
    esac
    shift
done
need tag "$tag"
[[ $platform == tpu || $platform == cuda ]] || die "--platform '$platform': expected tpu or cuda"

act docker build --file "$here/Dockerfile" --build-arg "PLATFORM=$platform" --tag "$tag" "$here/.."
if "$push"; then act docker push "$tag"; fi
