# make -f dev/stacking.mk SCALE=smoke|nano|small|paper SEEDS=3: the study of stacking models (dev/stacking.study); for goals and variables see dev/study.mk.
STUDY := stacking
include dev/study.mk
