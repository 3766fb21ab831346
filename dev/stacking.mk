# make -f dev/stacking.mk SCALE=smoke|nano|small|paper SEEDS=3: the study of stacking models (dev/stacking.study); how it is called: dev/study.mk.
STUDY := stacking
include dev/study.mk
