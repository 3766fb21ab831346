# The two studies, one command each; make -f dev/growth.mk and make -f dev/stacking.mk read this file. What is trained, grown, stacked and compared
# is data, in dev/growth.study and dev/stacking.study; dev/study.sh makes a target of each model and each row of it, and this includes them.
#
#   make -f dev/growth.mk -j2                 every row, and then tables and figures; what was stopped goes on, what is in the CSV is left alone
#   make -f dev/growth.mk plan                every run with its FLOPs, tokens and memory, and hours from 20 measured steps of each size
#   make -f dev/growth.mk status              what is done, running and left
#   make -f dev/growth.mk rows|tables|figures
#
#   SCALE=nano      smoke: in seconds. nano: two cores, hours. small: one GPU, minutes a comparison. paper: the studies' own size.
#   SEEDS=3         1 to 3; or from-to, as in 4-6
#   ONLY=fixed      an experiment, or the rows that a pattern names: 'fixed-3.25*'; with what they are compared with
#   LAUNCH=         put before each run, as in LAUNCH='srun -n1 --exclusive' with -j64
#   RESULTS=dev/results   where rows (STUDY.csv), tables and figures go
#   OUT=out/studies       where models, logs and data lie
#   KEEP=models     rows: models are removed when no row needs them any more; rows and logs stay
ifeq ($(STUDY),)
  $(error dev/study.mk is read by dev/growth.mk and dev/stacking.mk: make -f one of these)
endif
SCALE ?= nano
SEEDS ?= 3
RESULTS ?= dev/results
OUT ?= out/studies
KEEP ?= $(if $(filter small,$(SCALE)),rows,models)
export STUDY SCALE SEEDS ONLY RESULTS OUT KEEP
# The same for $(shell), which make exports nothing to before 4.4.
quoted = '$(subst ','\'',$(1))'
ask = $(foreach name,STUDY SCALE SEEDS ONLY RESULTS OUT KEEP,$(name)=$(call quoted,$($(name)))) dev/study.sh
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
study := dev/study.sh

.PHONY: all rows plan status tables figures
all: figures tables
figures tables: rows
	@$(PYTHON) dev/$@.py $(STUDY) --scale $(SCALE) --results $(RESULTS)
status:
	@dev/study.sh status

ifeq ($(filter-out plan status,$(or $(MAKECMDGOALS),all)),)
  # The sizes that a plan measures.
  SPEEDS := $(if $(filter plan,$(MAKECMDGOALS)),$(shell $(ask) speeds))
else
  GRAPH := $(shell $(ask) graph)
endif
ifneq ($(filter-out 0,$(.SHELLSTATUS)),)
  $(error $(STUDY): stopped; the line above says why)
endif
ifneq ($(GRAPH),)
  include $(GRAPH)
endif
%.done:
	@$(LAUNCH) dev/study.sh do $(*F)
plan: $(SPEEDS)
	@dev/study.sh plan
