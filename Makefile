# deepen: every command. `make help` lists them.

# Where the programs run: auto is cuda where nvcc and a GPU are both there, else cpu.
DEVICE ?= auto
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

HAS_BF16 := $(shell grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo && echo yes)
PRECISION ?= $(if $(or $(HAS_BF16),$(filter cuda,$(TARGET))),bf16,fp32)
ifeq ($(filter $(PRECISION),bf16 fp32),)
  $(error PRECISION must be bf16 or fp32, not '$(PRECISION)')
endif

# build/host-*: what is the same for every device. build/cpu-*, build/cuda-*: the ops of one, and the programs.
# build/emulator-*: the CUDA files, for the CPU.
HOST := build/host-$(PRECISION)
EMULATOR := build/emulator-$(PRECISION)
BUILD := build/$(TARGET)-$(PRECISION)

CXX ?= g++
# g++ 12 warns of its own vector headers (GCC bug 105593).
GCC12 := -Wno-uninitialized -Wno-maybe-uninitialized
DEFINES := $(if $(filter fp32,$(PRECISION)),-DPRECISION_FP32) $(if $(THIRD_PARTY),-isystem $(THIRD_PARTY))
CXXFLAGS := -std=c++20 -O3 -march=native -fopenmp -fno-math-errno -Wall -Wextra -Wshadow $(GCC12) -MMD -MP -iquote . $(DEFINES)
# Without PCRE2 the tokenizer's encoder is left out.
PCRE2 ?= $(if $(shell echo 'int main(){return pcre2_jit_compile_8(0,0);}' | $(CXX) -include pcre2.h -DPCRE2_CODE_UNIT_WIDTH=8 \
           $(if $(THIRD_PARTY),-isystem $(THIRD_PARTY)) -x c++ - -lpcre2-8 -o /dev/null 2>/dev/null && echo yes),yes,no)
export THIRD_PARTY PCRE2
LDLIBS := $(if $(filter yes,$(PCRE2)),-lpcre2-8) -lpthread
COMMIT := $(shell git describe --always --dirty 2>/dev/null || echo unknown)

# CUDA: the code of A100 and its kind and of H100 and its kind, and what newer cards translate for themselves; or ARCH="sm_90a ...".
ifneq ($(filter-out sm_%,$(ARCH)),)
  $(error ARCH must be of the form sm_80 or sm_90a, not '$(ARCH)')
endif
GENCODE := $(if $(ARCH),$(foreach arch,$(ARCH),-gencode arch=$(arch:sm_%=compute_%),code=$(arch)),-gencode arch=compute_80,code=sm_80 \
             -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_80,code=compute_80)
NVCCFLAGS := -std=c++20 -O3 -lineinfo -Xcompiler=-iquote,.,-Wall,-Wextra -Xptxas=-v -MMD -MP $(GENCODE) $(DEFINES)
ifeq ($(TARGET),cuda)
  ifeq ($(NVCC),)
    $(error DEVICE=cuda needs nvcc: install CUDA's toolkit and put nvcc on the PATH (or NVCC=where/it/is), or make DEVICE=cpu)
  endif
  LINK = $(NVCC) -Xcompiler=-fopenmp -Xlinker=-rpath,$(abspath $(dir $(realpath $(NVCC)))/../lib64)
  LDLIBS += -lcublasLt
else
  LINK = $(CXX) $(CXXFLAGS)
  LDLIBS += -ldnnl
endif

PROGRAMS := train_gpt grow stack convert data/tokenize
# An op comes in two files of one name, the .cpp for the CPU and the .cu for CUDA; a .cu alone is a part of another.
OPS := $(basename $(wildcard llmc/*.cu))
SOURCES := $(wildcard llmc/*.cpp)
LIBRARY := $(if $(filter cuda,$(TARGET)),$(patsubst %.cpp,$(HOST)/%.o,$(filter-out $(OPS:%=%.cpp),$(SOURCES))) $(OPS:%=$(BUILD)/%.cu.o),$(SOURCES:%.cpp=$(HOST)/%.o))
TESTS := $(patsubst %.cpp,$(HOST)/%.o,$(wildcard test/*.cpp))
# Suites that work with files and programs: once, whichever precision these are built for.
RUN_PROGRAMS := $(basename $(notdir $(shell grep -lE '"test/(program|small_model)\.h"' test/*.cpp)))
empty :=
comma := ,
space := $(empty) $(empty)
SUITES_OF_PROGRAMS := $(subst $(space),$(comma),$(RUN_PROGRAMS:%=*test/%.cpp))

.PHONY: all run test bench bench-ops profile kernels gpu-check emulator help parts packages tests emulator_tests cuda_binaries clean FORCE

all: parts $(PROGRAMS)  ## build ./train_gpt ./grow ./stack ./convert data/tokenize (DEVICE=auto|cpu|cuda, PRECISION=bf16|fp32, ARCH=sm_90a, THIRD_PARTY=dir of headers)

run: packages  ## install what is missing, build, and do the main job: text, train, grow, train, stack, measure (MINUTES=3 of training; RESTART=1: not on from where it was stopped; SMOKE=1: in seconds)
	@$(MAKE) --no-print-directory -j2 all
	@SMOKE='$(SMOKE)' MINUTES='$(MINUTES)' RESTART='$(RESTART)' dev/run.sh

test: packages  ## install what is missing, build, and run every test, in both precisions, on the emulator too; CUDA's compiler where there is one
	@$(MAKE) --no-print-directory -j2 all
	$(call in_both,tests)
	$(call in_both,emulator_tests)
	$(if $(NVCC),$(call in_both,DEVICE=cuda cuda_binaries),@echo "no nvcc here: the CUDA files were compiled for the emulator alone")
	@ONCE="$(SUITES_OF_PROGRAMS)" dev/run_tests.sh $(TARGET) emulator faults $(if $(NVCC),nvcc)

bench: packages  ## speed of the training step, beside the peak of matrix products on this machine (BENCH=nano|d12|speedrun: one case)
	@$(MAKE) --no-print-directory -j2 $(BUILD)/bench
	@$(BUILD)/bench $(BENCH)

bench-ops: packages  ## time of every op of a step, at the shapes of MODEL (speedrun124M) and BATCH (2), beside the ceilings of this machine
	@$(MAKE) --no-print-directory -j2 $(BUILD)/bench_ops
	@$(BUILD)/bench_ops $(or $(MODEL),speedrun124M) --batch $(or $(BATCH),2)

profile: packages  ## where a step's time goes: command lines for Nsight; on the CPU a table by phase, layer and op (STEP=4, FLAGS='...' of train_gpt)
	@$(MAKE) --no-print-directory -j2 all
	@STEP="$(STEP)" FLAGS="$(FLAGS)" dev/profile.sh $(TARGET)

kernels: packages  ## dev/kernels: every step of the ladders checked, from naive to best, with its bound (on a GPU: and its time)
	@$(MAKE) --no-print-directory -j2 $(if $(filter cuda,$(TARGET)),$(BUILD),$(EMULATOR))/ladder
	@$(if $(filter cuda,$(TARGET)),$(BUILD),$(EMULATOR))/ladder

gpu-check:  ## on a machine with a GPU and CUDA's toolkit, in nine minutes: build, check, measure; writes dev/results/<gpu>.md
	@COMMIT='$(COMMIT)' dev/gpu_check.sh "$(SUITES_OF_PROGRAMS)"

emulator: packages  ## op suite, golden cases, whole steps and planted faults with the CUDA kernels, on the emulator of test/emulator
	$(call in_both,emulator_tests)
	@dev/run_tests.sh emulator faults

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 18

clean:  ## remove what was built
	rm -rf build $(PROGRAMS)

packages:
	@dev/setup.sh

# Which real parts the build found, a tick or a cross each, and what it is built for.
tick = $(if $(2),✓,✗) $(1)
parts:
	@dev/setup.sh --check
	@echo "parts: $(call tick,nvcc,$(NVCC)) $(if $(NVCC),$$($(NVCC) --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p'))" \
	      "  $(call tick,GPU,$(GPU))" \
	      "  $$(sed -n 's/.*DNNL_VERSION_\(MAJOR\|MINOR\|PATCH\) \([0-9]*\).*/\2/p' $(firstword $(wildcard $(THIRD_PARTY)/oneapi/dnnl/dnnl_version.h /usr/include/oneapi/dnnl/dnnl_version.h) /dev/null) | paste -sd. | sed 's/.\+/✓ oneDNN &/; s/^$$/✗ oneDNN/')" \
	      "  $(call tick,PCRE2,$(filter yes,$(PCRE2)))$(if $(filter yes,$(PCRE2)),, (text cannot be encoded))" \
	      "  $(call tick,bf16 products of the CPU,$(HAS_BF16))  built for: $(TARGET) ($(WHY)), $(PRECISION)"

# A program lies with its objects; the name at the top points to the one that was asked for last.
$(PROGRAMS): %: $(BUILD)/% FORCE
	@ln -srfn $< $@
$(BUILD)/train_gpt: $(HOST)/train_gpt.o
$(BUILD)/grow: $(HOST)/grow.o
$(BUILD)/stack: $(HOST)/stack.o
$(BUILD)/convert: $(HOST)/dev/convert.o
$(BUILD)/data/tokenize: $(HOST)/data/tokenize.o
$(BUILD)/bench: $(HOST)/dev/bench.o
$(BUILD)/bench_ops: $(HOST)/dev/bench_ops.o
$(BUILD)/report: $(HOST)/dev/report.o
$(BUILD)/tests: $(TESTS)
$(BUILD)/step: $(HOST)/test/emulator/step.o
$(PROGRAMS:%=$(BUILD)/%) $(BUILD)/bench $(BUILD)/bench_ops $(BUILD)/report $(BUILD)/tests $(BUILD)/step: $(BUILD)/llmc.a
	@mkdir -p $(@D)
	$(LINK) -o $@ $(filter %.o,$^) $(BUILD)/llmc.a $(LDLIBS)
all: $(BUILD)/report

# One precision after the other: two makes at once would write the same files.
in_both = @for precision in bf16 fp32; do $(MAKE) --no-print-directory -j2 PRECISION=$$precision $(1) || exit; done
tests: $(BUILD)/tests $(BUILD)/step $(if $(filter fp32,$(PRECISION)),$(BUILD)/tests_without_pcre2)
cuda_binaries: tests $(PROGRAMS:%=$(BUILD)/%) $(BUILD)/bench $(BUILD)/bench_ops $(BUILD)/ladder
emulator_tests: $(EMULATOR)/tests $(EMULATOR)/step $(if $(filter bf16,$(PRECISION)),$(EMULATOR)/faults.sh)
	@$(MAKE) --no-print-directory DEVICE=cpu build/cpu-$(PRECISION)/step

# The CUDA files, unmodified, compiled by g++ for the emulator, under AddressSanitizer and UBSan. The op suite, and the whole model.
EMULATOR_FLAGS := -std=c++20 -O1 -g1 -march=native -fopenmp -fsanitize=address,undefined -fno-sanitize-recover=all -fno-strict-aliasing \
                  -ftrivial-auto-var-init=pattern -Wall -Wextra -Wshadow $(GCC12) -Wno-unknown-pragmas -MMD -MP -iquote test/emulator -iquote . -Itest/emulator \
                  $(DEFINES)
EMULATOR_LIBRARY := $(OPS:%=$(EMULATOR)/%.cu.o) $(patsubst %,$(EMULATOR)/llmc/%.o,config gpt json memory optimizer rotary_table tensors) \
                    $(EMULATOR)/test/emulator/emulator.o
EMULATOR_TESTS := $(patsubst %.cpp,$(EMULATOR)/%.o,$(wildcard $(OPS:llmc/%=test/%.cpp)) test/golden.cpp test/main.cpp test/emulator/stream.cpp)
$(EMULATOR)/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(CXX) $(EMULATOR_FLAGS) -O2 -x c++ -c -o $@ $<
# The scheduler of fibres switches stacks itself: it tells AddressSanitizer so, and is not watched by it.
$(EMULATOR)/test/emulator/emulator.o: test/emulator/emulator.cpp
	@mkdir -p $(@D)
	$(CXX) $(EMULATOR_FLAGS) -O2 -fno-sanitize=all -DEMULATOR_ASAN -c -o $@ $<
$(EMULATOR)/%.o: %.cpp
	@mkdir -p $(@D)
	$(CXX) $(EMULATOR_FLAGS) -c -o $@ $<
$(EMULATOR)/tests: $(EMULATOR_TESTS)
$(EMULATOR)/step: $(EMULATOR)/test/emulator/step.o
$(EMULATOR)/tests $(EMULATOR)/step: $(EMULATOR_LIBRARY)
	$(CXX) $(EMULATOR_FLAGS) -o $@ $^
# The faults, with the compiler that they are planted with.
$(EMULATOR)/faults.sh: test/emulator/faults.sh $(EMULATOR)/tests
	@printf '#!/bin/sh\nBUILD=%s CXX="%s" FLAGS="%s" exec test/emulator/faults.sh "$$@"\n' '$(EMULATOR)' '$(CXX)' '$(EMULATOR_FLAGS) -O0' >$@ && chmod +x $@

$(BUILD)/llmc.a: $(LIBRARY)
	@mkdir -p $(@D)
	rm -f $@ && ar rcs $@ $^
$(HOST)/%.o: %.cpp
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -c -o $@ $<
# The programs at the top of the tree: no kernels in them, so any compiler of C++ does.
$(HOST)/%.o: %.cu
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -x c++ -c -o $@ $<
# What ptxas reports is kept beside the object, for dev/check_spills.sh.
$(BUILD)/%.cu.o: %.cu $(BUILD)/gencode
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) -c -o $@ $< >$@.log 2>&1 || { cat $@.log >&2; exit 1; }
	@grep -vE '^ptxas info|^ +[0-9]+ bytes stack frame' $@.log >&2 || true
$(HOST)/llmc/build.o: CXXFLAGS += -DDEEPEN_COMMIT='"$(COMMIT)"'
$(HOST)/llmc/build.o: build/commit

# Files that change when what they hold does, and so make anew what was built with it.
holds = @mkdir -p $(@D) && echo '$(1)' | cmp -s - $@ || echo '$(1)' >$@
build/commit: FORCE
	$(call holds,$(COMMIT))
$(BUILD)/gencode: FORCE
	$(call holds,$(GENCODE))
$(HOST)/pcre2: FORCE
	$(call holds,$(PCRE2))

$(HOST)/llmc/split.o: $(HOST)/pcre2
ifneq ($(PCRE2),yes)
$(HOST)/llmc/split.o: CXXFLAGS += -DNO_PCRE2
endif
# What a build without PCRE2 does: the tests once more, with the splitter of such a build.
$(HOST)/without_pcre2.o: llmc/split.cpp
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -DNO_PCRE2 -c -o $@ $<
$(BUILD)/tests_without_pcre2: $(TESTS) $(HOST)/without_pcre2.o $(BUILD)/llmc.a
	$(LINK) -o $@ $(filter %.o,$^) $(BUILD)/llmc.a $(LDLIBS)

# The ladders of dev/kernels: on a GPU with times, otherwise on the emulator, where every step is checked.
LADDER := $(patsubst %,dev/kernels/%.cu.o,norm cross_entropy attention check)
$(EMULATOR)/ladder: $(addprefix $(EMULATOR)/,$(LADDER) dev/kernels/ladder.cu.o) $(EMULATOR_LIBRARY)
	$(CXX) $(EMULATOR_FLAGS) -o $@ $^
$(EMULATOR)/tests: $(addprefix $(EMULATOR)/,$(LADDER) dev/kernels/test.o)
$(BUILD)/ladder: $(addprefix $(BUILD)/,$(LADDER) dev/kernels/ladder.cu.o) $(BUILD)/llmc.a
	$(LINK) -o $@ $^ $(LDLIBS)

-include $(shell find $(HOST) $(BUILD) $(EMULATOR) -name '*.d' 2>/dev/null)
