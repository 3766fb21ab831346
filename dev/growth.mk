# make -f dev/growth.mk SCALE=smoke|nano|small|paper SEEDS=3: the study of depth growth (dev/growth.study); for goals and variables see dev/study.mk.
STUDY := growth
include dev/study.mk
