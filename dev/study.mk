# The two studies; make -f dev/growth.mk and make -f dev/stacking.mk include this file. What is trained, grown, stacked and compared is data,
# in dev/growth.study and dev/stacking.study; dev/study.sh writes a makefile with a target for each model and each row, which is included here.
#
#   make -f dev/growth.mk -j2                 every row, then tables and figures; stopped runs resume, rows that are in the CSV are not made again
#   make -f dev/growth.mk plan                every run with its FLOPs, tokens and memory, and its hours, from 20 measured steps of each model size
#   make -f dev/growth.mk status              what is done, running and left
#   make -f dev/growth.mk data                the training data alone (rows make it if it is missing)
#   make -f dev/growth.mk rows                every row, without tables and figures
#   make -f dev/growth.mk tables figures      of the rows that exist. Tables are written into RESULTS/growth.md if it has marks of this scale, and
#                                             printed if not
#
#   SCALE=nano      smoke: seconds. nano: two cores, hours. small: one GPU, minutes per comparison. paper: the studies' own size.
#   SEEDS=3         seeds 1 to 3; or a range such as 4-6
#   ONLY=fixed      an experiment, or a pattern of rows such as 'fixed-3.25*'; the rows that they are compared with are made too
#   LAUNCH=         a prefix of each run, such as LAUNCH='srun -n1 --exclusive' with -j64
#   RESULTS=dev/results   where rows (STUDY.csv), tables and figures go
#   WORK=out/studies      where models, logs and data go
#   KEEP=models     KEEP=rows: models are removed when no row needs them any more; rows and logs stay
ifeq ($(STUDY),)
  $(error dev/study.mk is read by dev/growth.mk and dev/stacking.mk: make -f one of these)
endif
SCALE ?= nano
SEEDS ?= 3
RESULTS ?= dev/results
WORK ?= out/studies
KEEP ?= $(if $(filter small,$(SCALE)),rows,models)
export STUDY SCALE SEEDS ONLY RESULTS WORK KEEP
# The same variables for $(shell): make before 4.4 does not export to it.
quoted = '$(subst ','\'',$(1))'
ask = $(foreach name,STUDY SCALE SEEDS ONLY RESULTS WORK KEEP,$(name)=$(call quoted,$($(name)))) dev/study.sh
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)

.PHONY: all rows plan status tables figures data
all: tables figures
tables:
	@if grep -qsF "<!-- table: $$SCALE " "$$RESULTS/$$STUDY.md"; then set -- --write; else set -- --scale "$$SCALE"; fi; \
	    $(PYTHON) dev/tables.py $(STUDY) --results "$$RESULTS" "$$@"
figures:
	@$(PYTHON) dev/figures.py $(STUDY) --results "$$RESULTS" --scale "$$SCALE"
status data:
	@dev/study.sh $@

GOALS := $(or $(MAKECMDGOALS),all)
ifneq ($(filter-out plan status tables figures data,$(GOALS)),)
  GRAPH := $(shell $(ask) graph)
  tables figures: rows
else
  # A plan measures the speed of each model size.
  SPEEDS := $(if $(filter plan,$(GOALS)),$(shell $(ask) speeds))
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
