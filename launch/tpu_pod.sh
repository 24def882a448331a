#!/usr/bin/env bash
# Trains on a TPU pod slice that exists, one process for each of its machines, and starts the run again where it failed.
#
#   TPU=my-slice ZONE=us-east5-a launch/tpu_pod.sh --config train_config.py:gc_bc \
#       --bridgedata_config data_config.py:bdv2_local --config.save_dir /mnt/runs --name first
#
# copies the repository to all machines, installs it there, and takes the flags of experiments/train.py. --name is needed,
# and config.save_dir and the data must lie on a disk that all machines mount. A slice that was taken away must be made
# again before; its run then goes on where it saved.
#
#   RESTARTS    how often the run is started again after a failure; 3
set -euo pipefail
cd "$(dirname "$0")/.."
: "${TPU:?the name of the slice}" "${ZONE:?its zone}"
restarts=${RESTARTS:-3}

on_all() {
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

packed=$(mktemp)
trap 'rm -f "$packed"' EXIT
tar --exclude=./.venv --exclude=./data --exclude=./runs --exclude=./.cache -czf - . > "$packed"
gcloud compute tpus tpu-vm scp "$packed" "$TPU:jaxvla.tar.gz" --zone="$ZONE" --worker=all
on_all "mkdir -p jaxvla && tar -xzf jaxvla.tar.gz -C jaxvla && cd jaxvla && python3 -m venv .venv \
    && .venv/bin/pip install --quiet -e '.[tpu]'"

# Quoted once more, for the shell of the machines.
printf -v flags ' %q' "$@"
for ((attempt = 0; ; attempt++)); do
    code=0
    on_all "cd jaxvla && .venv/bin/python experiments/train.py$flags --coordinator=auto --resume" || code=$?
    if ((code == 0 || attempt == restarts)); then exit "$code"; fi
    echo "the run ended with code $code; starting it again ($((attempt + 1)) of $restarts)" >&2
done
