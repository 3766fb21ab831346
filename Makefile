# deepen: every command. `make help` lists them.
#   PRECISION=bf16|fp32   what activations and products are stored in (default: bf16 where the processor multiplies it)
#   THIRD_PARTY=dir       a folder of headers, for machines without packages
#   SMOKE=1               make run: the same path in 30 seconds

HAS_BF16 := $(shell grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo && echo yes)
PRECISION ?= $(if $(HAS_BF16),bf16,fp32)
ifeq ($(filter $(PRECISION),bf16 fp32),)
  $(error PRECISION must be bf16 or fp32, not '$(PRECISION)')
endif
BUILD := build/cpu-$(PRECISION)

CXX ?= g++
# g++ 12 warns of its own vector headers (GCC bug 105593).
GCC12 := -Wno-uninitialized -Wno-maybe-uninitialized
CXXFLAGS := -std=c++20 -O3 -march=native -fopenmp -fno-math-errno -Wall -Wextra -Wshadow $(GCC12) -MMD -MP -I. \
            $(if $(filter fp32,$(PRECISION)),-DPRECISION_FP32) $(if $(THIRD_PARTY),-isystem $(THIRD_PARTY)) $(EXTRA_CXXFLAGS)
LDLIBS := -ldnnl -lpcre2-8 -pthread
COMMIT := $(shell git describe --always --dirty 2>/dev/null || echo unknown)

# One op, three files, one name: llmc/<op>.h is the contract, llmc/<op>.cpp the CPU.
OPS  := $(basename $(notdir $(filter-out $(HOST:%=llmc/%.cpp),$(wildcard llmc/*.cpp))))
OBJ  := $(OPS:%=$(BUILD)/llmc/%.o)
PROGRAMS := train_gpt grow stack convert tokenize
TESTS := $(patsubst test/%.cpp,$(BUILD)/test/%.o,$(wildcard test/*.cpp))

.PHONY: all
all: $(PROGRAMS)  ## build ./train_gpt ./grow ./stack ./convert ./tokenize

train_gpt: $(BUILD)/train_gpt.o
grow: $(BUILD)/grow.o
stack: $(BUILD)/stack.o
convert: $(BUILD)/dev/convert.o
tokenize: $(BUILD)/data/tokenize.o
$(PROGRAMS): $(BUILD)/llmc.a
	$(CXX) $(CXXFLAGS) -o $@ $(filter %.o,$^) $(BUILD)/llmc.a $(LDLIBS)

$(BUILD)/llmc.a: $(OBJ)
	rm -f $@ && ar rcs $@ $^
$(BUILD)/%.o: %.cpp
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -c -o $@ $<
$(BUILD)/%.o: %.cu
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -DDEEPEN_COMMIT='"$(COMMIT)"' -x c++ -c -o $@ $<

$(BUILD)/tests: $(TESTS) $(BUILD)/llmc.a
	$(CXX) $(CXXFLAGS) -o $@ $(TESTS) $(BUILD)/llmc.a $(LDLIBS)

-include $(shell find build -name '*.d' 2>/dev/null)
