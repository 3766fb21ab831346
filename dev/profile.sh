#!/bin/bash
# dev/profile.sh (make profile): where one training step's time goes. STEP=n chooses the step, FLAGS='...' the model.
# On a GPU: the command lines for Nsight Systems and Nsight Compute, which wait for that step (cudaProfilerStart) and show the NVTX
# ranges by phase, layer and op. On the CPU: runs to that step and prints a table of the same ranges.
set -euo pipefail
step=${STEP:-4}
flags=${FLAGS:---recipe nanochat --depth 4 --width 256 --heads 2 --seq-len 256 --vocab-size 4096 --batch-tokens 4096 --device-batch 16}
[[ $step =~ ^[1-9][0-9]*$ ]] || { echo "profile: STEP is '$step', but must be a whole number, 1 or more" >&2; exit 2; }

run="./train_gpt $flags --data 'corpus/train_*.bin' --steps $step --profile-steps $step:$step --eval-every 0 --out out/profile --overwrite"
cat <<END
Nsight Systems: the whole step on a timeline (open out/profile.nsys-rep):
  nsys profile -o out/profile -f true -t cuda,nvtx,cublas -c cudaProfilerApi --capture-range-end stop $run

Nsight Compute: every kernel of the step against its roofline (add -k regex:NAME for some of them; open out/profile.ncu-rep):
  ncu -o out/profile -f --profile-from-start off --nvtx --set full $run

END
mkdir -p out     # the profilers write there, too
[ "${1:-}" = cpu ] || exit 0
ls corpus/train_*.bin >/dev/null 2>&1 || data/default_corpus.sh corpus --shard-tokens 20481 | grep -v '^shard: '
echo "On this CPU: $run"
eval "$run" | grep '^profile:'
