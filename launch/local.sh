#!/usr/bin/env bash
# Trains on one machine as several processes, one for each GPU, and starts the run again where it failed.
#
#   launch/local.sh --config train_config.py:gc_bc --bridgedata_config data_config.py:bdv2_local --name first
#
# takes the flags of experiments/train.py, of which --name is needed: the run goes on in SAVE_DIR/NAME. SIGTERM and Ctrl-C
# are passed on; a run that they stopped has saved, and is not started again.
#
#   PROCESSES   how many; by default as many as nvidia-smi lists GPUs. On a CPU, say how many.
#   RESTARTS    how often the run is started again after a failure; 3
#   PYTHON      the interpreter; python
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
restarts=${RESTARTS:-3}
gpus=0
if command -v nvidia-smi > /dev/null; then gpus=$(nvidia-smi --list-gpus | wc -l); fi
processes=${PROCESSES:-$gpus}
if ((processes < 1)); then
    echo "error: nvidia-smi lists no GPU: set PROCESSES" >&2
    exit 2
fi

jobs=()
stopped=0
stop() {
    stopped=1
    kill -TERM "${jobs[@]}" 2> /dev/null || true
}
trap stop TERM INT

for ((attempt = 0; ; attempt++)); do
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    jobs=()
    for ((i = 0; i < processes; i++)); do
        # Without GPUs the variable says nothing to anybody.
        CUDA_VISIBLE_DEVICES=$i "$python" experiments/train.py "$@" --resume --interrupted_code=75 \
            --coordinator="127.0.0.1:$port" --num_processes="$processes" --process_id="$i" &
        jobs+=("$!")
    done
    code=0
    for job in "${jobs[@]}"; do
        own=0
        wait "$job" || own=$?
        # A signal ends the waiting, not the process.
        while kill -0 "$job" 2> /dev/null; do
            own=0
            wait "$job" || own=$?
        done
        if ((own != 0)); then code=$own; fi
    done
    if ((code == 0 || stopped || attempt == restarts)); then exit "$code"; fi
    echo "the run ended with code $code; starting it again ($((attempt + 1)) of $restarts)" >&2
done
