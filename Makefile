# deepen: every command. `make help` lists them.

HAS_BF16 := $(shell grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo && echo yes)
PRECISION ?= $(if $(HAS_BF16),bf16,fp32)
ifeq ($(filter $(PRECISION),bf16 fp32),)
  $(error PRECISION must be bf16 or fp32, not '$(PRECISION)')
endif
BUILD := build/cpu-$(PRECISION)

CXX ?= g++
# g++ 12 warns of its own vector headers (GCC bug 105593).
GCC12 := -Wno-uninitialized -Wno-maybe-uninitialized
CXXFLAGS := -std=c++20 -O3 -march=native -fopenmp -fno-math-errno -Wall -Wextra -Wshadow $(GCC12) -MMD -MP -iquote . \
            $(if $(filter fp32,$(PRECISION)),-DPRECISION_FP32) $(if $(THIRD_PARTY),-isystem $(THIRD_PARTY))
LDLIBS := -ldnnl -lpcre2-8 -pthread
export THIRD_PARTY
COMMIT := $(shell git describe --always --dirty 2>/dev/null || echo unknown)

PROGRAMS := train_gpt grow stack convert data/tokenize
LIBRARY := $(patsubst %.cpp,$(BUILD)/%.o,$(wildcard llmc/*.cpp))
TESTS := $(patsubst %.cpp,$(BUILD)/%.o,$(wildcard test/*.cpp))
# Suites that work with files and programs: once, whichever precision these are built for.
RUN_PROGRAMS := $(basename $(notdir $(shell grep -l '"test/program.h"' test/*.cpp)))
empty :=
comma := ,
space := $(empty) $(empty)
SUITES_OF_PROGRAMS := $(subst $(space),$(comma),$(RUN_PROGRAMS:%=*test/%.cpp))

.PHONY: all run test bench emulator help parts packages tests_bf16 tests_fp32 emulator_bf16 emulator_fp32 clean FORCE

all: parts $(PROGRAMS)  ## build ./train_gpt ./grow ./stack ./convert data/tokenize (PRECISION=bf16|fp32, THIRD_PARTY=dir of headers)

run: packages  ## install what is missing, build, and do the main job: text, train, grow, train, stack, measure (SMOKE=1: in 30 seconds)
	@$(MAKE) --no-print-directory -j2 all
	@SMOKE=$(SMOKE) dev/run.sh

test: packages  ## install what is missing, build, and run every test, in both precisions
	@$(MAKE) --no-print-directory -j2 all tests_bf16 tests_fp32
	@dev/run_tests.sh cpu "$(SUITES_OF_PROGRAMS)"

bench: packages  ## speed of the training step, beside the peak of matrix products on this machine (BENCH=nano|d12|speedrun: one case)
	@$(MAKE) --no-print-directory -j2 $(BUILD)/bench
	@$(BUILD)/bench $(BENCH)

emulator: packages  ## build and run the op suite and the golden cases with the CUDA kernels, on the emulator of test/emulator
	@$(MAKE) --no-print-directory -j2 emulator_bf16 emulator_fp32
	@dev/run_tests.sh emulator

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */  make \1\t/' | expand -t 14

clean:  ## remove what was built
	rm -rf build $(PROGRAMS)

packages:
	@dev/setup.sh

# Which real parts the build found: a tick or a cross each.
parts:
	@dev/setup.sh --check
	@echo "parts: ✓ oneDNN $$(pkg-config --modversion dnnl 2>/dev/null || sed -n 's/.*DNNL_VERSION_\(MAJOR\|MINOR\|PATCH\) \([0-9]*\).*/\2/p' $(firstword $(wildcard $(THIRD_PARTY)/oneapi/dnnl/dnnl_version.h /usr/include/oneapi/dnnl/dnnl_version.h)) /dev/null | paste -sd.)" \
	      "  $(if $(HAS_BF16),✓ bf16 products in hardware,✗ bf16 products in hardware (fp32 is the default here))  built for: cpu, $(PRECISION)"

# A program lies with its objects; the name at the top points to the one that was asked for last.
$(PROGRAMS): %: $(BUILD)/% FORCE
	@ln -srfn $< $@
$(BUILD)/train_gpt: $(BUILD)/train_gpt.o
$(BUILD)/grow: $(BUILD)/grow.o
$(BUILD)/stack: $(BUILD)/stack.o
$(BUILD)/convert: $(BUILD)/dev/convert.o
$(BUILD)/data/tokenize: $(BUILD)/data/tokenize.o
$(BUILD)/bench: $(BUILD)/dev/bench.o
$(BUILD)/report: $(BUILD)/dev/report.o
$(BUILD)/tests: $(TESTS)
$(PROGRAMS:%=$(BUILD)/%) $(BUILD)/bench $(BUILD)/report $(BUILD)/tests: $(BUILD)/llmc.a
	$(CXX) $(CXXFLAGS) -o $@ $(filter %.o,$^) $(BUILD)/llmc.a $(LDLIBS)
all: $(BUILD)/report

tests_bf16 tests_fp32: tests_%:
	@$(MAKE) --no-print-directory PRECISION=$* build/cpu-$*/tests

# The CUDA files, unmodified, compiled by g++ for the emulator, under AddressSanitizer and UBSan. The op suite, and the whole model.
EMULATED := $(patsubst llmc/%.cu,%,$(wildcard llmc/*.cu))
EMULATOR := build/emulator-$(PRECISION)
EMULATOR_FLAGS := -std=c++20 -O1 -g1 -march=native -fopenmp -fsanitize=address,undefined -fno-sanitize-recover=all -fno-strict-aliasing \
                  -ftrivial-auto-var-init=pattern -Wall -Wextra -Wshadow $(GCC12) -Wno-unknown-pragmas -MMD -MP -iquote test/emulator -iquote . -Itest/emulator \
                  $(if $(filter fp32,$(PRECISION)),-DPRECISION_FP32) $(if $(THIRD_PARTY),-isystem $(THIRD_PARTY))
EMULATOR_OBJECTS := $(EMULATED:%=$(EMULATOR)/llmc/%.cu.o) $(patsubst %,$(EMULATOR)/llmc/%.o,config gpt json memory optimizer rotary_table tensors) \
                    $(patsubst test/%.cpp,$(EMULATOR)/test/%.o,$(wildcard $(EMULATED:%=test/%.cpp)) test/golden.cpp test/main.cpp) \
                    $(EMULATOR)/test/emulator/emulator.o
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
$(EMULATOR)/tests: $(EMULATOR_OBJECTS)
	$(CXX) $(EMULATOR_FLAGS) -o $@ $^
emulator_bf16 emulator_fp32: emulator_%:
	@$(MAKE) --no-print-directory PRECISION=$* build/emulator-$*/tests

$(BUILD)/llmc.a: $(LIBRARY)
	rm -f $@ && ar rcs $@ $^
$(BUILD)/%.o: %.cpp
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -c -o $@ $<
$(BUILD)/%.o: %.cu
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -x c++ -c -o $@ $<
$(BUILD)/llmc/build.o: CXXFLAGS += -DDEEPEN_COMMIT='"$(COMMIT)"'
$(BUILD)/llmc/build.o: build/commit
build/commit: FORCE
	@mkdir -p build && echo '$(COMMIT)' | cmp -s - $@ || echo '$(COMMIT)' > $@

-include $(shell find $(BUILD) $(EMULATOR) -name '*.d' 2>/dev/null)

# The ladders of dev/kernels. DEVICE=cuda: nvcc and a GPU, with times. Otherwise the emulator, where every step is checked.
LADDER_CUDA := build/kernels-cuda-$(PRECISION)
LADDER := $(if $(filter cuda,$(DEVICE)),$(LADDER_CUDA),$(EMULATOR))
LADDER_SOURCES := $(patsubst %,dev/kernels/%,norm cross_entropy attention check)
LADDER_ENGINE := $(patsubst %,llmc/%,norm cross_entropy attention device)
NVCC ?= nvcc
LADDER_NVCC := -std=c++20 -O3 -x cu -Xcompiler -Wall,-Wextra,-iquote,. -MMD -MP $(addprefix -gencode arch=compute_,80,code=sm_80 90a,code=sm_90a) \
               $(if $(filter fp32,$(PRECISION)),-DPRECISION_FP32)

.PHONY: kernels
kernels:  ## dev/kernels: every step of the ladders checked, from naive to best, with its bound (DEVICE=cuda: and its time)
	@$(MAKE) --no-print-directory -j2 $(LADDER)/ladder
	@$(LADDER)/ladder

$(EMULATOR)/ladder: $(patsubst %,$(EMULATOR)/%.cu.o,$(LADDER_SOURCES) dev/kernels/ladder $(LADDER_ENGINE)) $(EMULATOR)/test/emulator/emulator.o
	$(CXX) $(EMULATOR_FLAGS) -o $@ $^
# The same checks in the emulator's test runner.
$(EMULATOR)/tests: $(patsubst %,$(EMULATOR)/%.cu.o,$(LADDER_SOURCES)) $(EMULATOR)/dev/kernels/test.o
$(LADDER_CUDA)/ladder: $(patsubst %,$(LADDER_CUDA)/%.o,$(LADDER_SOURCES) dev/kernels/ladder $(LADDER_ENGINE))
	$(NVCC) -o $@ $^
$(LADDER_CUDA)/%.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(LADDER_NVCC) -c -o $@ $<
-include $(shell find $(LADDER_CUDA) -name '*.d' 2>/dev/null)
