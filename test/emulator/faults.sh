#!/bin/bash
# test/emulator/faults.sh (make faults): plants faults in copies of the kernels, one at a time, and demands that the op suite on the
# emulator turns red for each, and is green without. A test that cannot fail is a bug; this is the test of the tests.
# The environment, which make sets:
#   BUILD   where the emulator was built     LIBRARY  its objects          CXX, FLAGS  the compiler, and how
#   SUITES  where those of the op suites lie  MAIN    the runner's         FAULT       the name of one fault: it alone is planted
#   COMM    comm's suite and the program that it runs, objects too                     LIBS  what they are linked with
set -u
cd "$(dirname "$0")/../.." || exit 2

# fault NAME OP CASES FILE FROM TO: in FILE the words FROM, which must be there exactly once, become TO; OP's .cu file is compiled with
# that file, and the cases CASES of its suite run.
faults() {
    fault "no barrier between the warps' sums and the sum of those" norm '*forward is the formula' llmc/device/cuda_common.h \
        $'x = warp_sum(x);\n    if (lane_of_thread() == 0) scratch[warp_of_thread()] = x;\n    __syncthreads();' \
        $'x = warp_sum(x);\n    if (lane_of_thread() == 0) scratch[warp_of_thread()] = x;'
    fault "no barrier before the next half of a tree of sums" reduce 'mean_loss*' llmc/ops/reduce.cu \
        $'__syncthreads();\n        if (threadIdx.x < half)' 'if (threadIdx.x < half)'
    fault "no barrier between the denominators of the warps and of the row" cross_entropy '*loss and its gradient' llmc/ops/cross_entropy.cu \
        $'scratch[warp_of_thread()] = mine;\n    __syncthreads();' 'scratch[warp_of_thread()] = mine;'
    fault "no barrier between the gates' gradients and their sum" value_embedding '*backward is the formula*' llmc/ops/value_embedding.cu \
        $'__syncthreads();\n\n    for (int g = warp' 'for (int g = warp'
    fault "no barrier between two chunks of tokens" embedding '*order sorts*' llmc/ops/embedding.cu \
        $'static_cast<int>(begin + i);\n        __syncthreads();' 'static_cast<int>(begin + i);'
    fault "no barrier of the warp between reading and moving a place" embedding '*order sorts*' llmc/ops/embedding.cu \
        $'shared.next[token] : 0;\n                __syncwarp();' 'shared.next[token] : 0;'
    fault "a load one element off" cross_entropy '*loss and its gradient' llmc/ops/cross_entropy.cu \
        'false>(target >= 0 ? to_float(row[target])' 'false>(target >= 0 ? to_float(row[target + 1])'
    fault "a capped row kept in a neighbour's place" cross_entropy '*loss and its gradient' llmc/ops/cross_entropy.cu \
        'store_packed(cache + v, {kept' 'store_packed(cache + (v ^ VECTOR), {kept'
    fault "a loop that reads one element too many" reduce 'sums_of_squares*' llmc/ops/reduce.cu 'i + 3 < span.count' 'i + 2 < span.count'
    fault "a vector of four beyond the end that is not taken apart" reduce 'add adds' llmc/ops/reduce.cu 'if (i + 3 < n) {' 'if (i < n) {'
    fault "a sum of a tree that takes no more than one neighbour" reduce 'tree_sum*' llmc/ops/reduce.cu 'carried = part >> level & 1;' 'carried = level == 0 && (part & 1);'
    fault "a thread beyond the end that adds all the same" reduce 'tree_sum*' llmc/ops/reduce.cu $'if (at >= n) return;\n    float sums' 'float sums'
    fault "a row looked up one too far" embedding '*forward copies*' llmc/ops/embedding.cu 'wte + int64_t{idx[n]} * C' 'wte + int64_t{idx[n] + 1} * C'
    fault "a store that is skipped at the end" norm '*forward is the formula' llmc/device/cuda_common.h \
        'if (at(i) < C) store_packed(row + at(i), pieces[i]);' 'if (at(i) + VECTOR < C) store_packed(row + at(i), pieces[i]);'
    fault "a store that is skipped for the last head" rotary '*forward rotates*' llmc/ops/rotary.cu \
        'if (lanes.at == 0 && h < heads) rstd' 'if (lanes.at == 0 && h + 1 < heads) rstd'
    fault "the tail of a row is not masked" norm '*forward is the formula' llmc/device/cuda_common.h \
        'at(i) < C ? load_packed(row + at(i)) : Packed{}' 'load_packed(row + at(i))'
    fault "the tail of a tensor is not masked" adamw '*formula*' llmc/ops/adamw.cu 'if (i + WIDTH <= t.n)' 'if (i < t.n)'
    fault "keys beyond the end are not masked" attention '*forward is the softmax*' llmc/ops/attention.cu 'data, row + i < from.count)' 'data)'
    fault "a shuffle without the last lane" norm '*forward is the formula' llmc/device/cuda_common.h \
        'x += __shfl_xor_sync(ALL_LANES, x' 'x += __shfl_xor_sync(ALL_LANES >> 1, x'
    fault "a shuffle of all lanes where eight take part" embedding '*backward sums*' llmc/ops/segment_sum.cuh \
        '__shfl_sync(group.mask, position' '__shfl_sync(ALL_LANES, position'
    fault "no barrier in the sums of the rows' shares" residual 'mix_norm_backward*' llmc/ops/residual.cu \
        $'__syncthreads();\n        if (threadIdx.x < half)' 'if (threadIdx.x < half)'
    fault "the last vectors of a tensor are not masked" activation '*' llmc/ops/activation.cu 'if (at < vectors) store(dx' 'store(dx'
    fault "a load past the row that nobody uses" rotary '*backward*' llmc/ops/rotary.cu 'load_halves(a, b, dhead, h < heads)' 'load_halves(a, b, dhead, true)'
    fault "lanes without a head leave before the sum" value_embedding '*forward adds*' llmc/ops/value_embedding.cu \
        $'float dot = 0;\n#pragma unroll\n    for (int c = lane;' $'if (!there) return;\n    float dot = 0;\n#pragma unroll\n    for (int c = lane;'
    fault "no barrier after the first write of shared memory" embedding '*backward sums*' llmc/ops/segment_sum.cuh \
        $'shared.long_begins = -1;\n    __syncthreads();' 'shared.long_begins = -1;'
    fault "the rates of the first tensor for all" adamw '*' llmc/ops/adamw.cu 'hyper = hypers[which]' 'hyper = hypers[0]'
    fault "columns beyond the matrix are summed" muon '*moves*' llmc/ops/muon.cu 'if (warp_of_thread() > 0 || c >= cols) return;' 'if (warp_of_thread() > 0) return;'
    fault "no barrier between the last mma and the output tile" matmul '*symmetric*' llmc/ops/matmul.cu $'__syncthreads();\n\n    bf16* tile' 'bf16* tile'
    fault "a stage is read before its copy has come" matmul '*symmetric*' llmc/ops/matmul.cu 'copy_async_wait<STAGES - 2>();' 'copy_async_wait<STAGES - 1>();'
    fault "a kernel chosen for the batch at hand" matmul '*however many*' llmc/ops/matmul.cu \
        '{.batch = batch, .kernel_for = KERNEL_FOR, .M = M, .N = N' '{.batch = batch, .kernel_for = batch, .M = M, .N = N'
    fault "one call of a kernel that takes one matmul at a time" matmul 'matmul takes*' llmc/ops/matmul.cu 'plan.calls = p.batch;' ''
    fault "a slot's event comes before its copy" device 'uploads*' llmc/device/device.cu \
        $'cuda_check(cudaMemcpyAsync(device, pinned, bytes, cudaMemcpyHostToDevice, cuda_stream(stream)), "uploads");\n    cuda_check(cudaEventRecord(ring->done[slot], cuda_stream(stream)), "uploads");' \
        $'cuda_check(cudaEventRecord(ring->done[slot], cuda_stream(stream)), "uploads");\n    cuda_check(cudaMemcpyAsync(device, pinned, bytes, cudaMemcpyHostToDevice, cuda_stream(stream)), "uploads");'
    fault "a slot is filled again before its copy" device 'uploads*' llmc/device/device.cu 'cuda_check(cudaEventSynchronize(ring->done[slot]), "uploads");' ''
    local loop=$'sum[m][r] = 0;\n\n    for (int k0 = first, stage = 0; k0 < end; k0 += KEYS, stage ^= 1) {\n        '
    local wait=$'copy_async_wait<0>();\n        ' sync='__syncthreads();'
    fault "asynchronous copies are not waited for" attention '*forward is the softmax*' llmc/ops/attention.cu "$loop$wait" "$loop"
    fault "no barrier after asynchronous copies" attention '*forward is the softmax*' llmc/ops/attention.cu "$loop$wait$sync" "$loop$wait"
    fault "sums that a new row max does not rescale" attention '*forward is the softmax*' llmc/ops/attention.cu \
        'if (rescale[m][r] != 1)' 'if (rescale[m][r] > 1)'
    fault "no barrier between tiles of queries" attention 'attention_backward*' llmc/ops/attention.cu \
        $'__syncthreads();            // the tiles are here, and all are done with those of the other stage\n        if (i + 1' 'if (i + 1'
    fault "no barrier after the tiles of a head above 128" attention 'attention_forward is*' llmc/ops/attention.cu \
        $'plain_fetch(y, b, d, D);\n            __syncthreads();' 'plain_fetch(y, b, d, D);'
    fault "no barrier between the scores and their max" attention '*cache*' llmc/ops/attention.cu $'dot : -INFINITY;\n        __syncthreads();' 'dot : -INFINITY;'
    local hopper=llmc/ops/attention_hopper.cu
    fault "a TMA barrier waited for in the wrong phase" attention_hopper '*forward is the softmax*' $hopper 'turn.parity ^ 1' 'turn.parity'
    fault "a wgmma operand with the wrong distance between its blocks" attention_hopper '*forward is the softmax*' $hopper \
        'matrix_descriptor(y.bytes, Tile<HEAD, K>::BLOCK)' 'matrix_descriptor(y.bytes, 1024)'
    fault "one thread's fence for all that its warpgroup wrote" attention_hopper '*forward is the softmax*' $hopper \
        'async_fence();' 'if (leader) async_fence();'
    fault "a slot released before its results are stored" attention_hopper '*forward is the softmax*' $hopper \
        $'tensor_store_wait();\n            mbarrier_arrive' 'mbarrier_arrive'
    fault "a warpgroup that passes over a tile too few" attention_hopper '*forward is the softmax*' $hopper \
        'for (; count > 0; count--)' 'for (; count > 1; count--)'
    fault "results written without the swizzle" attention_hopper '*forward is the softmax*' $hopper '(n % 8 ^ lane_row % 8)' '(n % 8)'
    fault "keys released before the wgmma that reads them" attention_hopper 'attention_backward*' $hopper \
        $'wgmma_wait<0>(dq, ds_left);\n                    used_keys.release();' $'used_keys.release();\n                    wgmma_wait<0>(dq, ds_left);'
    fault "a wgmma that nobody waits for" attention_hopper 'attention_backward*' $hopper 'wgmma_wait<0>(dk, dv, p_left, ds_left);' 'wgmma_wait<1>(dk, dv, p_left, ds_left);'
    local comm=llmc/ops/comm.cu
    fault "a process's part received in another's place" comm '*each byte*' $comm 'transport->receive(parts + r * n' 'transport->receive(parts + (processes - 1 - r) * n'
    fault "a gather that is left out" comm '*each byte*' $comm 'if (!transport || bytes == 0) return;' 'if (bytes >= 0) return;'
    fault "a call that is overtaken on its stream" comm '*each byte*' $comm \
        $'ncclResult_t result = ncclGroupEnd();\n        until([&] { return settled(std::exchange(result, ncclInProgress)); });   //' $'ncclGroupEnd();\n//'
    fault "a call that does not wait for the caller's stream" comm '*each byte*' $comm 'wait_for(stream, cuda_stream(callers));' ''
    fault "a caller's stream that does not wait for the call" comm '*each byte*' $comm 'wait_for(cuda_stream(callers), stream);' ''
    fault "a call on a stream that another thread takes for its own" comm '*each byte*' $comm 'ncclUint8, to, nccl, stream)' 'ncclUint8, to, nccl, cudaStreamPerThread)'
    fault "an earlier run's meeting" comm '*earlier run*' $comm '(r == rank && text.substr(at, end - at) != nonce)' 'false'
    fault "an earlier run's nonce that is never looked at again" comm '*earlier run*' $comm '!missing.empty() || all == written' '!missing.empty() || !written.empty()'
    fault "a partner's end that nobody sees" comm '*end of a process*' $comm \
        'if (t.nccl) t.settled(ncclInProgress);' ''
    fault "a stream that waits for a process that is gone" comm '*end of a process*' $comm 'if (nccl) ncclCommAbort(std::exchange(nccl, nullptr));' 'nccl = nullptr;'
    fault "every process on the first GPU" comm '*each byte*' $comm 'cuda_check(cudaSetDevice(local_rank), "comm");' ''
}

work=$BUILD/faults

# build FOLDER OP: the .cu file of OP with the files that FOLDER has, and its suite (attention's for attention_hopper).
build() {
    local source suite worker=
    source=$(echo llmc/*/"$2.cu") suite=${source#llmc/}
    suite=${suite%.cu} suite=$SUITES/${suite%_hopper}.o
    [ "$2" != comm ] || read -r suite worker <<<"$COMM"
    [ ! -f "$1/$source" ] || source=$1/$source
    $CXX -iquote "$1" $FLAGS -include "$work/first.h" -x c++ -c -o "$1/$2.o" "$source" &&
        { [ -z "$worker" ] || $CXX $FLAGS -o "$1/comm_worker" "$1/$2.o" "$worker" "$work/ops.a" $LIBS; } &&
        $CXX $FLAGS -o "$1/tests" "$1/$2.o" "$suite" "$MAIN" "$work/ops.a" $LIBS
}

# One fault, in a process of its own; says ok or not ok.
plant() {
    local name=$1 op=$2 cases=$3 file=$4 from=$5 to=$6 folder text rest
    folder=$work/$(tr -c 'a-z\n' _ <<<"$name")
    rm -rf "$folder" && mkdir -p "$folder/$(dirname "$file")"
    text=$(<"$file") rest=${text#*"$from"}
    if [ "$rest" = "$text" ] || [[ $rest == *"$from"* ]]; then
        echo "not ok: $name: $file must have exactly once: ${from//$'\n'/ }"
        return
    fi
    printf '%s\n' "${text%%"$from"*}$to$rest" >"$folder/$file"
    if ! build "$folder" "$op" >"$folder/log" 2>&1; then
        echo "not ok: $name: does not compile ($folder/log)"
        return
    fi
    timeout 120 "$folder/tests" --abort-after=1 "--test-case=$cases" >"$folder/log" 2>&1
    case $? in
        0) echo "not ok: $name: the suite of $op stayed green ($folder)" ;;
        124) echo "not ok: $name: the suite of $op did not end ($folder)" ;;
        *) echo "ok: $name: $(grep -m1 -oE 'emulator: .*|AddressSanitizer: [a-z]+-[a-z-]+|runtime error: .*|[^ ]+ is .* times the tolerance|ERROR: CHECK.*|SUMMARY: .*' "$folder/log")" ;;
    esac
}

# The suite without a fault, built the same way.
green() {
    local op=$1 folder=$work/$1
    rm -rf "$folder" && mkdir -p "$folder"
    if build "$folder" "$op" >"$folder/log" 2>&1 && "$folder/tests" "--test-case-exclude=attention_backward*,attention gives*" >"$folder/log" 2>&1; then
        echo "ok: $op without a fault is green"
    else
        echo "not ok: $op without a fault is not green ($folder/log)"
    fi
}

# As many at a time as there are processors: each job's words come in one piece.
results=$(mktemp)
trap 'rm -f "$results"' EXIT
job() {
    while (($(jobs -rp | wc -l) >= $(nproc))); do wait -n; done
    "$@" >>"$results" &
}
fault() {
    [ "$1" = "${only:-$1}" ] && planted=$((planted + 1)) && job plant "$@"
    case " $ops " in *" $2 "*) return ;; esac
    ops+=" $2"
    [ -n "$only" ] || job green "$2"   # not all of them at the end: they take longest
}

only=${FAULT:-} ops="" planted=0
mkdir -p "$work"
rm -f "$work/ops.a" && ar rcs "$work/ops.a" $LIBRARY
# The shadow headers, in which no fault is planted, are compiled once: half the time of a compilation is theirs.
echo '#include "cuda_runtime.h"' >"$work/first.h" && $CXX $FLAGS -x c++-header -o "$work/first.h.gch" "$work/first.h" || exit 2
faults
if [ -n "$only" ] && [ $planted = 0 ]; then echo "faults.sh: no fault is named '$only'; their names are in test/emulator/faults.sh" >&2 && exit 2; fi
wait
sort "$results"
bad=$(grep -c '^not ok' "$results")
echo "$(grep -c '^ok' "$results") passed, $bad failed, 0 skipped"
[ "$bad" = 0 ]
