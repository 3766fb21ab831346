# deepen: every command. `make help` lists them. In this order: what can be set; what is compiled, and how; the commands; what make test
# builds; the rules.

# ------------------------------------------------------------------------------------------------------------------ what can be set

# The instruction set: this machine's own (native), or avx2: code for x86-64-v3, and oneDNN limited to AVX2, as on a processor without
# AVX-512.
ifeq ($(if $(word 2,$(ISA)),,$(filter $(or $(ISA),native),native avx2)),)   # of two words, or another one
  $(error ISA must be native or avx2, not '$(ISA)')
endif
AVX2 := $(filter avx2,$(ISA))
ifeq ($(AVX2)$(filter cuda,$(DEVICE)),avx2cuda)
  $(error ISA=avx2 builds for the CPU; it cannot go with DEVICE=cuda)
endif

# Where the programs run: auto is cuda where nvcc and a GPU are both there, else cpu.
DEVICE ?= $(if $(AVX2),cpu,auto)
ifeq ($(if $(word 2,$(DEVICE)),,$(filter $(DEVICE),auto cpu cuda)),)
  $(error DEVICE must be auto, cpu or cuda, not '$(DEVICE)')
endif
export DEVICE TARGET
NVCC ?= $(or $(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))
override NVCC := $(shell command -v $(NVCC))
GPU := $(firstword $(wildcard /dev/nvidia[0-9]*) $(shell nvidia-smi -L 2>/dev/null | grep -o '^GPU'))
ifeq ($(DEVICE),auto)
  TARGET := $(if $(and $(NVCC),$(GPU)),cuda,cpu)
  WHY := $(if $(NVCC),$(if $(GPU),nvcc and a GPU are here,no GPU here),no nvcc here)
else
  TARGET := $(DEVICE)
  WHY := asked for
endif

# Precision: bf16 where the device has bf16 matmuls, else fp32.
HAS_BF16 := $(if $(AVX2),,$(shell grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo && echo yes))
PRECISION ?= $(if $(or $(HAS_BF16),$(filter cuda,$(TARGET))),bf16,fp32)
ifeq ($(filter $(PRECISION),bf16 fp32),)
  $(error PRECISION must be bf16 or fp32, not '$(PRECISION)')
endif

# Build folders. build/plain: objects that depend neither on the device nor on the precision. build/host-*: on the precision alone.
# build/cpu-*, build/cuda-*: the ops of one device, and the programs. build/emulator-*: the CUDA files, compiled for the CPU. With ISA=avx2
# these names contain avx2: build/cpu-avx2-fp32.
KIND := $(AVX2:%=%-)$(PRECISION)
PLAIN := build/plain$(AVX2:%=-%)
HOST := build/host-$(KIND)
EMULATOR := build/emulator-$(KIND)
BUILD := build/$(TARGET)-$(KIND)

# -------------------------------------------------------------------------------------------------------- what is compiled, and how

CXX ?= g++
# g++ 12 warns about its own vector headers (GCC bug 105593).
GCC12 := -Wno-uninitialized -Wno-maybe-uninitialized
HEADERS := $(if $(THIRD_PARTY),-isystem $(THIRD_PARTY))
FLOATX := $(if $(filter fp32,$(PRECISION)),-DPRECISION_FP32)
MARCH := $(if $(AVX2),-march=x86-64-v3 -DISA_AVX2,-march=native)
CXXFLAGS := -std=c++20 -O3 $(MARCH) -fopenmp -fno-math-errno -Wall -Wextra -Wshadow $(GCC12) -MMD -MP -iquote . $(HEADERS)
# Without PCRE2 the tokenizer's encoder is left out.
ifeq ($(origin PCRE2),undefined)   # not PCRE2 ?=, which would run the compiler at each use
PCRE2 := $(if $(shell echo 'int main(){return pcre2_jit_compile_8(0,0);}' | $(CXX) -include pcre2.h -DPCRE2_CODE_UNIT_WIDTH=8 \
           $(if $(THIRD_PARTY),-isystem $(THIRD_PARTY)) -x c++ - -lpcre2-8 -o /dev/null 2>/dev/null && echo yes),yes,no)
endif
export THIRD_PARTY
ifeq ($(PCRE2),yes)   # only if found: the goal packages may install it, and the sub-makes that run after that must look again
export PCRE2
endif
LDLIBS := $(if $(filter yes,$(PCRE2)),-lpcre2-8) -lpthread
# Without MPI a program runs as one process (GPU builds can also rendezvous through a file, --meet). Open MPI's compiler wrapper prints the
# flags; Fedora and openSUSE do not put it on the PATH.
comma := ,
ifeq ($(filter yes no,$(MPI)),)   # on clusters MPI may be set to something else, such as a path
MPICC ?= $(firstword $(shell command -v mpicc) $(wildcard /usr/lib64/openmpi/bin/mpicc /usr/lib64/mpi/gcc/openmpi*/bin/mpicc) mpicc)
MPI_CFLAGS := $(shell $(MPICC) --showme:compile 2>/dev/null) -DOMPI_SKIP_MPICXX
MPI_LIBS := $(shell $(MPICC) --showme:link 2>/dev/null)
MPI := $(if $(shell echo 'int main(){return MPI_Init(nullptr,nullptr);}' | $(CXX) -include mpi.h $(MPI_CFLAGS) -x c++ - $(MPI_LIBS) -o /dev/null 2>/dev/null && echo yes),yes,no)
endif
ifeq ($(MPI),yes)
export MPI MPI_CFLAGS MPI_LIBS
endif
COMMIT := $(shell git describe --always --dirty 2>/dev/null || echo unknown)

# CUDA: machine code for sm_80 (A100) and sm_90a (H100), and PTX that the driver compiles for other GPUs; or ARCH="sm_90a ...".
ifneq ($(filter-out sm_%,$(ARCH)),)
  $(error ARCH must be of the form sm_80 or sm_90a, not '$(ARCH)')
endif
GENCODE := $(if $(ARCH),$(foreach arch,$(ARCH),-gencode arch=$(arch:sm_%=compute_%),code=$(arch)),-gencode arch=compute_80,code=sm_80 \
             -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_80,code=compute_80)
NVCCFLAGS := -std=c++20 -O3 -lineinfo -Xcompiler=-iquote,.,-Wall,-Wextra -Xptxas=-v -MMD -MP $(GENCODE) $(HEADERS) $(FLOATX)
ifeq ($(TARGET),cuda)
  ifeq ($(NVCC),)
    $(error DEVICE=cuda needs nvcc: install CUDA's toolkit and put nvcc on the PATH (or NVCC=where/it/is), or make DEVICE=cpu)
  endif
  CUDA := $(abspath $(dir $(realpath $(NVCC)))/..)
  # Without NCCL a program runs as one process. NCCL comes with the toolkit, or from NVIDIA's repository.
  ifeq ($(filter yes no,$(NCCL)),)
    NCCL := $(if $(shell echo 'int main(){int version;return ncclGetVersion(&version);}' | $(CXX) -include nccl.h -isystem $(CUDA)/include -x c++ - \
              -L$(CUDA)/lib64 -lnccl -o /dev/null 2>/dev/null && echo yes),yes,no)
  endif
  export NCCL
  LINK = $(NVCC) -Xcompiler=-fopenmp -Xlinker=-rpath,$(CUDA)/lib64
  LDLIBS += -lcublasLt $(if $(filter yes,$(NCCL)),-lnccl) $(if $(filter yes,$(MPI)),$(patsubst -pthread,-lpthread,$(subst -Wl$(comma),-Xlinker=,$(MPI_LIBS))))
else
  LINK = $(CXX) $(CXXFLAGS)
  LDLIBS += -ldnnl $(if $(filter yes,$(MPI)),$(MPI_LIBS))
endif

PROGRAMS := train_gpt grow stack convert latents data/tokenize
# An op has two files of one name, .cpp for the CPU and .cu for CUDA; a .cu without a .cpp is part of another op.
OPS := $(basename $(wildcard llmc/*/*.cu))
SOURCES := $(basename $(wildcard llmc/*.cpp llmc/*/*.cpp))
# test/ops/comm.cpp tests comm over MPI; test/emulator/comm.cpp tests it over NCCL.
OP_SUITES := $(filter-out test/ops/comm,$(basename $(wildcard $(OPS:llmc/%=test/%.cpp)))) test/golden test/recipe
# Sources that use floatX, compiled once per precision. All others are compiled once (there floatX is an incomplete type: llmc/device/types.h).
IN_FLOATX := $(OPS) llmc/gpt llmc/load llmc/optimizer llmc/generate llmc/memory_plan $(OP_SUITES) \
             test/gpt test/ops/matmul_tile test/emulator/step test/latents train_gpt dev/bench dev/bench_ops dev/latents dev/report
# $(call object,NAMES): the object files of sources, given without their endings.
object = $(foreach source,$(1),$(if $(filter $(IN_FLOATX),$(source)),$(HOST),$(PLAIN))/$(source).o)
# What every program is linked with.
LIBRARY := $(if $(filter cuda,$(TARGET)),$(call object,$(filter-out $(OPS),$(SOURCES))) $(OPS:%=$(BUILD)/%.cu.o),$(call object,$(SOURCES)))
# Suites: all of test/ but test/emulator and test/comm_worker, which are programs of their own; on CUDA also without comm and matmul_tile,
# which test the CPU alone.
SUITES := $(filter-out test/emulator/% test/comm_worker $(if $(filter cuda,$(TARGET)),test/ops/comm test/ops/matmul_tile),$(basename $(wildcard test/*.cpp test/*/*.cpp)))
TESTS := $(call object,$(SUITES))
# Suites that run the programs, or work with files alone: once, in the precision that the programs are built for.
SUITES_OF_PROGRAMS := test/checkpoint test/cluster test/describe test/diagrams test/downloads test/extending test/gpu_check test/includes test/io/error test/io/flags test/latents test/layers test/layout test/lineage test/linux_source test/logs test/ops/comm test/rewrite test/run test/run_tests test/safetensors \
                      test/setup test/stack test/studies test/study test/text/dataloader test/text/shard test/text/tokenizer test/tokenize test/train_gpt
# The same as doctest's --source-file takes them: *test/checkpoint.cpp,*test/downloads.cpp,...
ONCE := $(shell echo $(SUITES_OF_PROGRAMS) | sed -E 's/([^ ]+)/*\1.cpp/g; s/ /,/g')

# --------------------------------------------------------------------------------------------------------------------- the commands

.PHONY: all run test bench bench-ops bench-processes profile kernels gpu-check emulator faults help clean deps
.PHONY: parts packages check doctest plain tests emulator_tests planted_faults cuda_binaries FORCE

all: parts $(PROGRAMS)  ## build ./train_gpt ./grow ./stack ./convert ./latents data/tokenize (DEVICE=auto|cpu|cuda, PRECISION=bf16|fp32, ISA=avx2, ARCH=sm_90a, THIRD_PARTY=dir of headers)

run: packages  ## install what is missing, build, and run the whole pipeline: tokenize, train, grow, train on, stack, compare (MINUTES=3 of training; RESTART=1: start over; SMOKE=1: tiny, in seconds)
	@$(MAKE) --no-print-directory -j2 all
	@SMOKE='$(SMOKE)' MINUTES='$(MINUTES)' RESTART='$(RESTART)' dev/run.sh

test: packages  ## install what is missing, build, and run every test: both precisions, the CUDA files on the emulator, a build for AVX2, and nvcc where it is installed
	@PROGRAMS_IN=$(PRECISION) ONCE="$(ONCE)" dev/run_tests.sh $(AVX2) $(TARGET) emulator faults $(if $(AVX2),,isa) $(if $(NVCC),nvcc)

bench: packages  ## speed of the training step, against this machine's peak matmul rate (BENCH=nano|d12|speedrun: one case)
	@$(MAKE) --no-print-directory -j2 $(BUILD)/bench
	@$(BUILD)/bench $(BENCH)

bench-ops: packages  ## time of every op of a training step, at the shapes of MODEL (speedrun124M) and BATCH (2), against this machine's bandwidth and peak matmul rate
	@$(MAKE) --no-print-directory -j2 $(BUILD)/bench_ops
	@$(BUILD)/bench_ops $(or $(MODEL),speedrun124M) --batch $(or $(BATCH),2)

bench-processes: packages  ## a training step as one process with several threads, and as several processes with one thread each (CASE=nano|d12)
	@$(MAKE) --no-print-directory -j2 all $(BUILD)/bench_ops
	@CASE='$(CASE)' dev/bench_processes.sh $(BUILD)

profile: packages  ## where a step's time goes: command lines for Nsight; on the CPU a table by phase, layer and op (STEP=4, FLAGS='...' of train_gpt)
	@$(MAKE) --no-print-directory -j2 all
	@STEP="$(STEP)" FLAGS="$(FLAGS)" dev/profile.sh $(TARGET)

kernels: packages  ## dev/kernels: the kernel ladders, from naive to best: every version checked, with its bound and, on a GPU, its time
	@$(MAKE) --no-print-directory -j2 $(if $(filter cuda,$(TARGET)),$(BUILD),$(EMULATOR))/ladder
	@$(if $(filter cuda,$(TARGET)),$(BUILD),$(EMULATOR))/ladder

gpu-check:  ## on a machine with a GPU and CUDA's toolkit, in nine minutes: build, check, measure; writes dev/results/<gpu>.md
	@COMMIT='$(COMMIT)' dev/gpu_check.sh "$(ONCE)"

emulator: packages  ## run the CUDA kernels on the CPU, on the emulator in test/emulator: op suites, golden cases, training steps, planted faults
	@dev/run_tests.sh $(AVX2) emulator faults

faults: packages  ## plant faults in the CUDA files, one at a time, and check that the op suites fail (FAULT='a load one element off': that one, with the suite's output)
	@$(MAKE) --no-print-directory -j2 DEVICE=cpu PRECISION=bf16 planted_faults

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 24

clean:  ## remove what was built
	rm -rf build $(PROGRAMS)

deps: packages  ## install the missing packages for building, testing and plotting (with apt-get; on other systems print their names)

# The commands below install what is missing, and their sub-makes need not look again (CHECKED). Other goals only report what is missing:
# check, before anything is compiled, and doctest, before a test suite is.
packages:
	@CXX='$(CXX)' dev/setup.sh
run test bench bench-ops bench-processes profile kernels emulator faults: export CHECKED := yes
check:
	$(if $(CHECKED),,@CXX='$(CXX)' dev/setup.sh --check)
doctest: check
	$(if $(CHECKED),,@CXX='$(CXX)' dev/setup.sh --check doctest)

# Which libraries and tools the build found, a tick or a cross each, and the target.
tick = $(if $(2),✓,✗) $(1)
parts: check
	@echo "parts: $(call tick,nvcc,$(NVCC)) $(if $(NVCC),$$($(NVCC) --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p'))" \
	      "  $(call tick,GPU,$(GPU))" \
	      "  $$(sed -n 's/.*DNNL_VERSION_\(MAJOR\|MINOR\|PATCH\) \([0-9]*\).*/\2/p' $(firstword $(wildcard $(THIRD_PARTY)/oneapi/dnnl/dnnl_version.h /usr/include/oneapi/dnnl/dnnl_version.h) /dev/null) | paste -sd. | sed 's/.\+/✓ oneDNN &/; s/^$$/✗ oneDNN/')" \
	      "  $(call tick,PCRE2,$(filter yes,$(PCRE2)))$(if $(filter yes,$(PCRE2)),, (text cannot be encoded; make deps installs it))" \
	      "  $(call tick,MPI,$(filter yes,$(MPI)))$(if $(filter yes,$(MPI)),, (one process; make deps installs it))" \
	      $(if $(filter cuda,$(TARGET)),"  $(call tick,NCCL,$(filter yes,$(NCCL)))$(if $(filter yes,$(NCCL)),, (one process; install libnccl-dev of NVIDIA's repository))") \
	      "  $(call tick,bf16 matmuls on the CPU,$(HAS_BF16))  built for: $(TARGET) ($(WHY)), $(PRECISION)"

# ------------------------------------------------------------------------------------------------------------ what make test builds

# bf16/GOAL and fp32/GOAL: GOAL in that precision, by a sub-make. Both may run in parallel once plain has built what they share.
bf16/%: FORCE
	+@$(MAKE) --no-print-directory PRECISION=bf16 $*
fp32/%: FORCE
	+@$(MAKE) --no-print-directory PRECISION=fp32 $*
plain: $(sort $(filter $(PLAIN)/%,$(LIBRARY) $(TESTS)))
tests: $(BUILD)/tests $(BUILD)/step $(BUILD)/comm_worker $(BUILD)/comm_worker_without_mpi $(if $(filter fp32,$(PRECISION)),$(BUILD)/tests_without_pcre2)
tests: $(BUILD)/bench $(BUILD)/bench_ops
cuda_binaries: tests $(PROGRAMS:%=$(BUILD)/%) $(BUILD)/bench $(BUILD)/bench_ops $(BUILD)/ladder
emulator_tests: $(EMULATOR)/tests $(EMULATOR)/step $(EMULATOR)/train_gpt $(EMULATOR)/comm_worker $(EMULATOR)/comm_worker_without_nccl $(BUILD)/step
planted_faults: $(EMULATOR)/tests $(EMULATOR)/comm_worker
	@BUILD='$(EMULATOR)' LIBRARY='$(EMULATOR_LIBRARY)' SUITES='$(HOST)/test' MAIN='$(call object,test/main)' CXX='$(CXX)' FLAGS='$(EMULATOR_FLAGS) -O0' \
	    COMM='$(call object,test/emulator/comm test/comm_worker)' LIBS='$(EMULATOR_LIBS)' FAULT="$(FAULT)" test/emulator/faults.sh

# -------------------------------------------------------------------------------------------------------------- the rules: programs

# $(call says,compile) prints one line per file; with V=1 make prints the whole command instead.
Q := $(if $(V),,@)
says = $(if $(V),,@echo '  $(1) $@')

# A program is built in its build folder; the link at the top of the tree points to the one that was built last.
$(PROGRAMS): %: $(BUILD)/% FORCE
	@ln -srfn $< $@
$(BUILD)/train_gpt: $(call object,train_gpt)
$(BUILD)/grow: $(call object,grow)
$(BUILD)/stack: $(call object,stack)
$(BUILD)/convert: $(call object,dev/convert)
$(BUILD)/latents: $(call object,dev/latents)
$(BUILD)/data/tokenize: $(call object,data/tokenize)
$(BUILD)/bench: $(call object,dev/bench)
$(BUILD)/bench_ops: $(call object,dev/bench_ops)
$(BUILD)/report: $(call object,dev/report)
$(BUILD)/measure: $(call object,dev/measure)
$(BUILD)/tests: $(TESTS)
$(BUILD)/op_tests: $(call object,$(OP_SUITES) test/gpt test/ops/matmul_tile test/isa test/main)
$(BUILD)/step: $(call object,test/emulator/step)
$(BUILD)/comm_worker: $(call object,test/comm_worker)
$(PROGRAMS:%=$(BUILD)/%) $(BUILD)/bench $(BUILD)/bench_ops $(BUILD)/report $(BUILD)/measure $(BUILD)/tests $(BUILD)/op_tests $(BUILD)/step $(BUILD)/comm_worker: $(BUILD)/llmc.a
	@mkdir -p $(@D)
	$(call says,link)
	$(Q)$(LINK) -o $@ $(filter %.o,$^) $(BUILD)/llmc.a $(LDLIBS)
all: $(BUILD)/report $(BUILD)/measure

# ---------------------------------------------------------------------------------------------------------- the rules: the emulator

# The unmodified CUDA files, compiled by g++ for the emulator under AddressSanitizer and UBSan, with the code that allocates their memory;
# linked with the op suites, and with the whole model.
EMULATOR_FLAGS := -std=c++20 -O1 -g1 $(MARCH) -fopenmp -fsanitize=address,undefined -fno-sanitize-recover=all -fno-strict-aliasing \
                  -ftrivial-auto-var-init=pattern -Wall -Wextra -Wshadow $(GCC12) -Wno-unknown-pragmas -MMD -MP -iquote test/emulator -iquote . -Itest/emulator \
                  $(HEADERS) $(FLOATX)
EMULATOR_LIBRARY := $(OPS:%=$(EMULATOR)/%.cu.o) $(patsubst %,$(EMULATOR)/%.o,llmc/gpt llmc/device/memory llmc/optimizer test/emulator/emulator) \
                    $(call object,llmc/config llmc/layout llmc/io/file llmc/io/hash llmc/io/json llmc/io/launcher llmc/io/mpi_job llmc/io/process llmc/ops/rotary_table) \
                    $(call object,llmc/plan llmc/recipe llmc/schedule llmc/tensors llmc/text/shard)
EMULATOR_LIBS := $(if $(filter yes,$(MPI)),$(MPI_LIBS)) $(if $(filter yes,$(PCRE2)),-lpcre2-8)
EMULATOR_TESTS := $(EMULATOR)/test/emulator/stream.o $(call object,test/emulator/comm test/emulator/processes $(OP_SUITES) test/main)
$(EMULATOR)/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(call says,emulate)
	$(Q)$(CXX) $(EMULATOR_FLAGS) -O2 -x c++ -c -o $@ $<
# The fibre scheduler switches stacks itself: it announces this to AddressSanitizer and is not instrumented.
$(EMULATOR)/test/emulator/emulator.o: test/emulator/emulator.cpp
	@mkdir -p $(@D)
	$(call says,emulate)
	$(Q)$(CXX) $(EMULATOR_FLAGS) -O2 -fno-sanitize=all -DEMULATOR_ASAN -c -o $@ $<
$(EMULATOR)/%.o: %.cpp
	@mkdir -p $(@D)
	$(call says,emulate)
	$(Q)$(CXX) $(EMULATOR_FLAGS) -c -o $@ $<
# Of an inline function in several objects the linker keeps the first: the library comes first, because the suites are not instrumented.
$(EMULATOR)/tests: $(EMULATOR_LIBRARY) $(EMULATOR_TESTS)
$(EMULATOR)/step: $(EMULATOR_LIBRARY) $(call object,test/emulator/step)
# The trainer, for the tests with several processes.
$(EMULATOR)/train_gpt: $(EMULATOR_LIBRARY) $(filter-out $(EMULATOR_LIBRARY),$(call object,train_gpt $(filter-out $(OPS) llmc/gpt llmc/device/memory llmc/optimizer,$(SOURCES))))
$(EMULATOR)/comm_worker: $(EMULATOR_LIBRARY) $(call object,test/comm_worker)
# The same worker in a build without NCCL.
$(EMULATOR)/comm_worker_without_nccl: $(filter-out %/comm.cu.o,$(EMULATOR_LIBRARY)) $(EMULATOR)/without_nccl.o $(call object,test/comm_worker)
$(EMULATOR)/without_nccl.o: llmc/ops/comm.cu
	$(call says,emulate)
	$(Q)$(CXX) $(EMULATOR_FLAGS) -DNO_NCCL -x c++ -c -o $@ $<
$(EMULATOR)/tests $(EMULATOR)/step $(EMULATOR)/train_gpt $(EMULATOR)/comm_worker $(EMULATOR)/comm_worker_without_nccl:
	$(call says,link)
	$(Q)$(CXX) $(EMULATOR_FLAGS) -o $@ $^ $(EMULATOR_LIBS)

# ---------------------------------------------------------------------------------------------------------- the rules: object files

$(BUILD)/llmc.a: $(LIBRARY)
	@mkdir -p $(@D)
	$(Q)rm -f $@ && ar rcs $@ $^

# $(call compile,FLAGS): the lines of a recipe that makes an object file of a source.
define compile
	@mkdir -p $(@D)
	$(call says,compile)
	$(Q)$(CXX) $(CXXFLAGS) $(1) -c -o $@ $<
endef
# Suites: -O3 takes half as long again to compile them, and they run no faster.
$(HOST)/test/%.o $(PLAIN)/test/%.o: CXXFLAGS += -O1
# The programs at the top of the tree end in .cu but have no kernels, so the C++ compiler builds them.
$(HOST)/%.o: %.cpp
	$(call compile,$(FLOATX))
$(HOST)/%.o: %.cu
	$(call compile,$(FLOATX) -x c++)
$(PLAIN)/%.o: %.cpp
	$(call compile,-DPRECISION_ANY)
$(PLAIN)/%.o: %.cu
	$(call compile,-DPRECISION_ANY -x c++)
# What ptxas reports is kept beside the object, for dev/check_spills.sh.
$(BUILD)/%.cu.o: %.cu $(BUILD)/gencode
	@mkdir -p $(@D)
	$(call says,nvcc)
	$(Q)$(NVCC) $(NVCCFLAGS) -c -o $@ $< >$@.log 2>&1 || { cat $@.log >&2; exit 1; }
	@grep -vE '^ptxas info|^ +[0-9]+ bytes stack frame' $@.log >&2 || true
$(PLAIN)/llmc/io/build.o: CXXFLAGS += -DDEEPEN_COMMIT='"$(COMMIT)"'
$(PLAIN)/llmc/io/build.o: build/commit

# $(call holds,TEXT): a file that is rewritten only when TEXT changes, so that what depends on it is rebuilt then, and only then.
holds = @mkdir -p $(@D) && echo '$(1)' | cmp -s - $@ || echo '$(1)' >$@
build/commit: FORCE
	$(call holds,$(COMMIT))
$(BUILD)/gencode: FORCE
	$(call holds,$(GENCODE))
$(PLAIN)/pcre2: FORCE
	$(call holds,$(PCRE2))
$(BUILD)/nccl: FORCE
	$(call holds,$(NCCL))
$(PLAIN)/mpi: FORCE
	$(call holds,$(MPI) $(MPI_CFLAGS))

$(BUILD)/llmc/ops/comm.cu.o: $(BUILD)/nccl
$(BUILD)/llmc/ops/comm.cu.o: NVCCFLAGS += $(if $(filter yes,$(NCCL)),,-DNO_NCCL)
$(PLAIN)/llmc/text/split.o: $(PLAIN)/pcre2
ifneq ($(PCRE2),yes)
$(PLAIN)/llmc/text/split.o: CXXFLAGS += -DNO_PCRE2
endif
$(PLAIN)/llmc/io/mpi_job.o: $(PLAIN)/mpi
$(PLAIN)/llmc/io/mpi_job.o: CXXFLAGS += $(if $(filter yes,$(MPI)),$(MPI_CFLAGS),-DNO_MPI)
# The worker of the comm tests in a build without MPI.
$(PLAIN)/without_mpi.o: llmc/io/mpi_job.cpp
	$(call compile,-DPRECISION_ANY -DNO_MPI)
$(BUILD)/comm_worker_without_mpi: $(call object,test/comm_worker) $(PLAIN)/without_mpi.o $(BUILD)/llmc.a
	$(call says,link)
	$(Q)$(LINK) -o $@ $(filter %.o,$^) $(BUILD)/llmc.a $(LDLIBS)
# The tests of a build without PCRE2: the suites linked once more, with the splitter of such a build.
$(PLAIN)/without_pcre2.o: llmc/text/split.cpp
	$(call compile,-DPRECISION_ANY -DNO_PCRE2)
$(BUILD)/tests_without_pcre2: $(TESTS) $(PLAIN)/without_pcre2.o $(BUILD)/llmc.a
	$(call says,link)
	$(Q)$(LINK) -o $@ $(filter %.o,$^) $(BUILD)/llmc.a $(LDLIBS)

# ----------------------------------------------------------------------------------------------------------- the rules: the ladders

# The ladders of dev/kernels: on a GPU with times, otherwise on the emulator, where every version is checked.
LADDER := $(patsubst %,dev/kernels/%.cu.o,norm cross_entropy attention check)
$(EMULATOR)/ladder: $(EMULATOR_LIBRARY) $(addprefix $(EMULATOR)/,$(LADDER) dev/kernels/ladder.cu.o)
	$(call says,link)
	$(Q)$(CXX) $(EMULATOR_FLAGS) -o $@ $^ $(EMULATOR_LIBS)
$(EMULATOR)/tests: $(addprefix $(EMULATOR)/,$(LADDER) dev/kernels/test.o)
$(BUILD)/ladder: $(addprefix $(BUILD)/,$(LADDER) dev/kernels/ladder.cu.o) $(BUILD)/llmc.a
	$(call says,link)
	$(Q)$(LINK) -o $@ $^ $(LDLIBS)

# ------------------------------------------------------------------------------------- the rules: what comes before any compilation

# Nothing is compiled before the check for missing parts.
COMPILED := $(basename $(wildcard *.cu llmc/*.cpp llmc/*/*.cpp data/*.cpp dev/*.cpp dev/kernels/*.cpp test/*.cpp test/*/*.cpp)) without_pcre2 without_mpi
KERNELS := $(wildcard llmc/*/*.cu dev/kernels/*.cu)
$(foreach folder,$(PLAIN) $(HOST) $(EMULATOR),$(COMPILED:%=$(folder)/%.o)) $(foreach folder,$(EMULATOR) $(BUILD),$(KERNELS:%=$(folder)/%.o)): | check
$(TESTS) $(EMULATOR_TESTS) $(EMULATOR)/dev/kernels/test.o: | doctest

# The headers that each object file depends on, as the compiler listed them.
-include $(shell find $(PLAIN) $(HOST) $(BUILD) $(EMULATOR) -name '*.d' 2>/dev/null)
