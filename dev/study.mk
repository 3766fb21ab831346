# The two studies, one command each; make -f dev/growth.mk and make -f dev/stacking.mk read this file. What is trained, grown, stacked and compared
# is data, in dev/growth.study and dev/stacking.study; dev/study.sh makes a target of each model and each row of it, and this includes them.
#
#   make -f dev/growth.mk -j2                 every row, and then tables and figures; what was stopped goes on, what is in the CSV is left alone
#   make -f dev/growth.mk plan                every run with its FLOPs, tokens and memory, and hours from 20 measured steps of each size
#   make -f dev/growth.mk status              what is done, running and left
#   make -f dev/growth.mk data                the text that models are trained on, which rows make by themselves
#   make -f dev/growth.mk rows                every row, and no more
#   make -f dev/growth.mk tables figures      of the rows that there are. Tables are written into RESULTS/growth.md, where it has marks of this scale, and
#                                             else printed
#
#   SCALE=nano      smoke: in seconds. nano: two cores, hours. small: one GPU, minutes a comparison. paper: the studies' own size.
#   SEEDS=3         1 to 3; or from-to, as in 4-6
#   ONLY=fixed      an experiment, or the rows that a pattern names: 'fixed-3.25*'; with what they are compared with
#   LAUNCH=         put before each run, as in LAUNCH='srun -n1 --exclusive' with -j64
#   RESULTS=dev/results   where rows (STUDY.csv), tables and figures go
#   WORK=out/studies      where models, logs and data lie
#   KEEP=models     rows: models are removed when no row needs them any more; rows and logs stay
ifeq ($(STUDY),)
  $(error dev/study.mk is read by dev/growth.mk and dev/stacking.mk: make -f one of these)
endif
SCALE ?= nano
SEEDS ?= 3
RESULTS ?= dev/results
WORK ?= out/studies
KEEP ?= $(if $(filter small,$(SCALE)),rows,models)
export STUDY SCALE SEEDS ONLY RESULTS WORK KEEP
# The same for $(shell), which make exports nothing to before 4.4.
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
  # The sizes that a plan measures.
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
